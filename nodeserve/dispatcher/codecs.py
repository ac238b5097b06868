"""How the engines of this node write their messages, and what each leg is told."""

from nodeserve.dispatcher.records import Leg
from nodeserve.errors import InvariantError
from nodeserve.ids import LeaseId
from nodeserve.router.messages import LegKind
from nodeserve.wire.control import WireFields
from nodeserve.wire.engine_core import AddRequest, RequestCodec
from nodeserve.wire.engine_outputs import OutputCodec


class Codecs:
    """The codecs of one vLLM version."""

    def __init__(self, fields: WireFields, grammar_backend: str) -> None:
        """Raises ValueError when this vLLM version is not supported."""
        self.fields = fields
        self.requests = RequestCodec(fields, grammar_backend)
        self.outputs = OutputCodec(fields)

    def payload(self, leg: Leg, add: AddRequest, lease_id: LeaseId | None) -> bytes:
        """Return the ADD that starts a leg.

        A leg that computes the prompt anew forgets what an earlier one has left.

        Raises:
            InvariantError: A decode leg's lease is not that of the request's handoff.
        """
        codec, request = self.requests, leg.request
        match leg.kind:
            case LegKind.WHOLE if request.sent:
                return codec.resumed_leg(add, leg.leg_id, request.sent)
            case LegKind.WHOLE:
                request.handoff = request.prefill_stats = request.prefill_events = None
                return codec.whole_leg(add, leg.leg_id)
            case LegKind.PREFILL:
                request.handoff = request.prefill_stats = request.prefill_events = None
                return codec.prefill_leg(add, leg.leg_id)
            case LegKind.DECODE:
                handoff = request.handoff
                if handoff is None or handoff.lease_id != lease_id:
                    raise InvariantError(
                        f"dispatcher: leg {leg.leg_id} pulls lease {lease_id} without its handoff;"
                        " report this bug"
                    )
                return codec.decode_leg(add, leg.leg_id, handoff.params)
