"""Several outputs of one request that wait to be posted become one.

That is needed only when the dispatcher is behind: then it takes several steps of one engine in
one turn, and a gateway is better sent one message with a few tokens for each request than a few
messages with one each. Front ends take several tokens in an output, for speculative decoding
brings them.
Nothing waits for others to come.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.wire.engine_outputs import OutputCodec

Output = list[Any]

MAX_TOKENS: Final = 16
"""The most tokens that outputs are joined to. More would gain little, for a message costs as much
as some ten tokens; and who does not read is held back by the number of messages that wait."""


@dataclass(slots=True)
class _Waiting:
    """What waits in one gateway's batch.

    ``last`` is the last output of each request, by the gateway's id for it, among the first
    ``num_known`` of the batch; ``growing`` the tokens of those that any plain output may join.
    """

    batch: list[Output]
    num_known: int = 0
    last: dict[str, Output] = field(default_factory=dict)
    growing: dict[str, list[int]] = field(default_factory=dict)


class Joins:
    """Joins the outputs of an engine's further steps to those that wait in the batches.

    ``begin`` before such a step, ``end`` when its outputs are in the batches, and ``clear`` when
    the batches are posted. Other steps need none of it.
    """

    def __init__(self, gateways: dict[int, GatewayLink]) -> None:
        self._gateways = gateways
        self._waiting: dict[GatewayLink, _Waiting] = {}

    def begin(self, codec: OutputCodec) -> None:
        """Look up whose outputs are in the batches."""
        id_at = codec.request_id
        for gateway in self._gateways.values():
            waiting = self._waiting.get(gateway)
            if waiting is None:
                waiting = self._waiting[gateway] = _Waiting(gateway.batch)
            # Another engine's first step may have brought some since.
            for output in gateway.batch[waiting.num_known :]:
                waiting.last[output[id_at]] = output
                waiting.growing.pop(output[id_at], None)  # begun anew elsewhere in this turn
            waiting.num_known = len(gateway.batch)

    def end(self, codec: OutputCodec) -> list[tuple[list[Output], Output]]:
        """Join what the step has brought.

        Returns:
            Outputs that can neither join an earlier one nor be in a message with it, oldest
            first, and the batches that they were in: to be put back when those are posted.
        """
        apart: list[tuple[list[Output], Output]] = []
        for waiting in self._waiting.values():
            later = waiting.batch[waiting.num_known :]
            if later:
                del waiting.batch[waiting.num_known :]
                refused = _join(codec, waiting, later)
                waiting.num_known = len(waiting.batch)
                apart += [(waiting.batch, output) for output in refused]
        return apart

    def clear(self) -> None:
        """Forget what waited: it is posted."""
        if self._waiting:
            self._waiting.clear()


def _join(codec: OutputCodec, waiting: _Waiting, later: list[Output]) -> list[Output]:
    """Join outputs to those that wait, or put them behind; return those that fit nowhere."""
    id_at, tokens_at = codec.request_id, codec.new_token_ids
    last, growing = waiting.last, waiting.growing
    refused: list[Output] = []
    for output in later:
        wire_id = output[id_at]
        tokens = growing.get(wire_id)
        if tokens is None:
            earlier = last.get(wire_id)
            if earlier is None:
                last[wire_id] = output
                waiting.batch.append(output)
                continue
            if codec.may_grow(earlier):
                tokens = growing[wire_id] = earlier[tokens_at]
        if tokens is not None and len(tokens) + len(output[tokens_at]) > MAX_TOKENS:
            tokens = None
        if tokens is not None and codec.is_plain(output):
            tokens += output[tokens_at]
        elif tokens is not None and codec.is_mere_end(output):
            codec.join_end(last[wire_id], output)
            del growing[wire_id]
        else:
            growing.pop(wire_id, None)
            last[wire_id] = output
            refused.append(output)
    return refused
