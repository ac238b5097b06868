"""The state machine of one request, from its arrival to its one end."""

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.ids import Generation, LeaseId, LegId
from nodeserve.router.losses import Losses
from nodeserve.router.messages import (
    AbortLeg,
    Command,
    FailRequest,
    LegKind,
    ReleaseLease,
    RequestArrived,
    StartLeg,
)


class Phase(enum.Enum):
    """Where a request is.

    HANDOFF: prefilled, its blocks leased, waiting for a decode slot.
    DECODE: its decode or whole leg runs.
    """

    QUEUED = "queued"
    PREFILL = "prefill"
    HANDOFF = "handoff"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


OVER: Final = frozenset({Phase.DONE, Phase.FAILED, Phase.ABORTED})
"""The phases in which a request has had its end."""


@dataclass(frozen=True, slots=True)
class PrefillPlaced:
    """A prefill leg goes to this worker."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class WholePlaced:
    """A whole leg goes to this worker."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class DecodePlaced:
    """A decode leg goes to this worker, which is not the one that prefilled."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class MovePlaced:
    """The decode or whole leg goes on at this worker; the one that ran it drains."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Refused:
    """The node does not take the request; ``exit_code`` as in FailRequest."""

    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class HandoffGranted:
    """The prefill leg ended and left its blocks under a lease."""

    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class HandoffGivenUp:
    """No worker but the one that prefilled is left to decode."""


@dataclass(frozen=True, slots=True)
class FirstOutputSeen:
    """The decode or whole leg answered: what it pulled is its own now."""


@dataclass(frozen=True, slots=True)
class LegEnded:
    """The leg's last output went to the client."""


@dataclass(frozen=True, slots=True)
class LegWorkerLost:
    """The worker that ran the leg is gone."""


@dataclass(frozen=True, slots=True)
class LeaseOwnerLost:
    """The worker whose blocks are leased is gone, and the lease with it."""


@dataclass(frozen=True, slots=True)
class AbortRequested:
    """Nobody waits for the answer any more."""


FlowEvent = (
    PrefillPlaced
    | WholePlaced
    | DecodePlaced
    | MovePlaced
    | Refused
    | HandoffGranted
    | HandoffGivenUp
    | FirstOutputSeen
    | LegEnded
    | LegWorkerLost
    | LeaseOwnerLost
    | AbortRequested
)

TRANSITIONS: Final[Mapping[tuple[Phase, type[FlowEvent]], Phase]] = {
    (Phase.QUEUED, PrefillPlaced): Phase.PREFILL,
    (Phase.QUEUED, WholePlaced): Phase.DECODE,
    (Phase.QUEUED, Refused): Phase.FAILED,
    (Phase.QUEUED, AbortRequested): Phase.ABORTED,
    (Phase.PREFILL, HandoffGranted): Phase.HANDOFF,
    (Phase.PREFILL, LegEnded): Phase.DONE,
    (Phase.PREFILL, LegWorkerLost): Phase.QUEUED,
    (Phase.PREFILL, AbortRequested): Phase.ABORTED,
    (Phase.HANDOFF, DecodePlaced): Phase.DECODE,
    (Phase.HANDOFF, HandoffGivenUp): Phase.QUEUED,
    (Phase.HANDOFF, LeaseOwnerLost): Phase.QUEUED,
    (Phase.HANDOFF, AbortRequested): Phase.ABORTED,
    (Phase.DECODE, FirstOutputSeen): Phase.DECODE,
    (Phase.DECODE, MovePlaced): Phase.DECODE,
    (Phase.DECODE, LegEnded): Phase.DONE,
    (Phase.DECODE, LegWorkerLost): Phase.QUEUED,
    # The engine that pulls notices by itself and computes the prompt.
    (Phase.DECODE, LeaseOwnerLost): Phase.DECODE,
    (Phase.DECODE, AbortRequested): Phase.ABORTED,
    # The prefill leg's handoff was under way when the abort came.
    (Phase.ABORTED, HandoffGranted): Phase.ABORTED,
}
"""Where an event leads. `RequestFlow` leads a loss that ends the request to FAILED instead."""


class RequestFlow:
    """One request's phase, the leg that runs and the lease that it holds.

    ``generation`` and ``leg_id`` belong to the leg that was placed last; they are None while
    no leg runs, except after an abort while prefilling: a handoff may still come from there.
    ``arrival`` is the request's number in the order of arrival, ``turn`` that in the order in
    which requests started. ``paid_s`` are the GPU seconds that its listener was charged when it
    started, None before, and ``guess_tokens`` the output that was part of them.
    ``sent_tokens`` is how much of the answer its client has, as far as was said; ``request`` is
    what the next leg computes: of a request that goes on elsewhere, what was sent belongs to
    the prompt.
    """

    __slots__ = (
        "_arrived",
        "arrival",
        "attempt",
        "generation",
        "guess_tokens",
        "has_output",
        "kind",
        "lease_id",
        "lease_owner",
        "leg_id",
        "losses",
        "paid_s",
        "phase",
        "request",
        "sent_tokens",
        "turn",
    )

    def __init__(self, request: RequestArrived, arrival: int = 0) -> None:
        self._arrived = request
        self.request = request
        self.arrival = arrival
        self.sent_tokens = 0
        self.phase = Phase.QUEUED
        self.attempt = 0
        self.losses = Losses()
        self.turn = 0
        self.paid_s: float | None = None
        self.guess_tokens = 0.0
        self.kind: LegKind | None = None
        self.leg_id: LegId | None = None
        self.generation: Generation | None = None
        self.has_output = False
        self.lease_id: LeaseId | None = None
        self.lease_owner: Generation | None = None

    def handle(self, event: FlowEvent) -> list[Command]:
        """Apply one event and return what must now be done, in order.

        Raises:
            InvalidTransitionError: The phase does not accept the event; nothing changed.
        """
        after = TRANSITIONS.get((self.phase, type(event)))
        if after is None:
            raise InvalidTransitionError(
                f"request {self.request.request_id}: phase {self.phase.value} does not accept"
                f" {event}; report this bug"
            )
        match event:
            case PrefillPlaced() | WholePlaced() | DecodePlaced():
                commands = self._start_leg(event)
            case MovePlaced():
                commands = self._move_leg(event)
            case HandoffGranted():
                commands = self._take_lease(event)
            case FirstOutputSeen():
                self.has_output = True
                self.losses.answered()
                commands = self._release_lease()
            case LegEnded():
                self._end_leg()
                commands = self._release_lease()
            case AbortRequested():
                commands = [*self._abort_leg(), *self._release_lease()]
            case LegWorkerLost():
                return self._lose_leg()
            case LeaseOwnerLost():
                return self._lose_lease()
            case HandoffGivenUp():
                commands = self._release_lease()
            case Refused():
                refusal = FailRequest(self.request.request_id, event.reason, event.exit_code)
                commands = [refusal]
            case _:
                assert_never(event)
        self.phase = after
        return commands

    @property
    def tokens_left(self) -> int:
        """How many tokens of the answer may still come, as far as was said."""
        return self._arrived.max_tokens - self.sent_tokens

    def resumed(self) -> RequestArrived:
        """Return what another worker would have to compute to go on with the request."""
        if not self.has_output:
            return self.request
        # What was sent is restored beside the prompt, which no prefill leg could hand over.
        return dataclasses.replace(
            self._arrived,
            whole=True,
            prompt_tokens=self._arrived.prompt_tokens + self.sent_tokens,
            max_tokens=max(1, self.tokens_left),
        )

    def check(self) -> None:
        """Check that what the request holds fits its phase.

        Raises:
            InvariantError: It does not: a leg or a lease would leak.
        """
        leg = (self.leg_id, self.generation, self.kind)
        match self.phase:
            case Phase.PREFILL:
                sound = self.kind is LegKind.PREFILL and None not in leg and self.lease_id is None
            case Phase.HANDOFF:
                sound = leg == (None, None, None) and self.lease_id is not None
            case Phase.DECODE:
                sound = self.kind in {LegKind.DECODE, LegKind.WHOLE} and None not in leg
                sound &= self.lease_id is None or self.kind is LegKind.DECODE
                sound &= self.lease_id is None or self.lease_owner != self.generation
            case Phase.QUEUED | Phase.DONE | Phase.FAILED:
                sound = leg == (None, None, None) and self.lease_id is None
            case Phase.ABORTED:
                sound = self.kind in {None, LegKind.PREFILL} and self.lease_id is None
        sound &= (self.lease_id is None) == (self.lease_owner is None)
        if not sound:
            raise InvariantError(
                f"request {self.request.request_id}: phase {self.phase.value} with leg {leg}"
                f" and lease {self.lease_id} of {self.lease_owner}; report this bug"
            )

    def _start_leg(self, event: PrefillPlaced | WholePlaced | DecodePlaced) -> list[Command]:
        request_id = self.request.request_id
        self.attempt += 1
        self.leg_id = LegId(f"{request_id}.{self.attempt}")
        self.generation = event.generation
        match event:
            case PrefillPlaced():
                self.kind = LegKind.PREFILL
            case WholePlaced():
                self.kind = LegKind.WHOLE
            case DecodePlaced():
                self.kind = LegKind.DECODE
        return [StartLeg(request_id, self.leg_id, self.generation, self.kind, self.lease_id)]

    def _take_lease(self, event: HandoffGranted) -> list[Command]:
        if self.generation is None:
            raise InvalidTransitionError(
                f"request {self.request.request_id}: no leg could have granted lease"
                f" {event.lease_id}; report this bug"
            )
        self.lease_id = event.lease_id
        self.lease_owner = self.generation
        self._end_leg()
        return self._release_lease() if self.phase is Phase.ABORTED else []

    def _release_lease(self) -> list[Command]:
        lease_id, owner = self.lease_id, self.lease_owner
        if lease_id is None or owner is None:
            return []
        self.lease_id = self.lease_owner = None
        return [ReleaseLease(owner, lease_id)]

    def _end_leg(self) -> None:
        self.kind = self.leg_id = self.generation = None

    def _abort_leg(self) -> list[Command]:
        leg_id, generation = self.leg_id, self.generation
        if leg_id is None or generation is None:
            return []
        if self.phase is not Phase.PREFILL:
            self._end_leg()
        return [AbortLeg(leg_id, generation)]

    def _resume(self) -> None:
        self.request = self.resumed()
        self.has_output = False

    def _move_leg(self, event: MovePlaced) -> list[Command]:
        generation = event.generation
        commands = self._abort_leg()
        if self.lease_id is not None and self.lease_owner != generation:
            return [*commands, *self._start_leg(DecodePlaced(generation))]
        commands += self._release_lease()
        self._resume()
        return [*commands, *self._start_leg(WholePlaced(generation))]

    def _lose_leg(self) -> list[Command]:
        generation = self.generation
        self._end_leg()
        self.losses.worker_died()
        commands = self._release_lease()
        if self.has_output and not self.request.restorable:
            return [*commands, self._fail(f"worker generation {generation} died while answering")]
        self._resume()
        return [*commands, *self._queue_again(generation)]

    def _lose_lease(self) -> list[Command]:
        if self.lease_id is None:
            raise InvalidTransitionError(
                f"request {self.request.request_id}: holds no lease that could be lost;"
                " report this bug"
            )
        owner = self.lease_owner
        self.lease_id = self.lease_owner = None
        if self.phase is Phase.DECODE:
            return []
        self.losses.owner_died()
        return self._queue_again(owner)

    def _queue_again(self, generation: Generation | None) -> list[Command]:
        if (too_many := self.losses.why_too_many()) is not None:
            return [self._fail(f"{too_many}, the last was generation {generation}")]
        if self.losses.is_last_chance:
            # Its own worker shall show whether it is the one: nobody else's leg comes into it.
            self.request = dataclasses.replace(self.request, whole=True)
        self.phase = Phase.QUEUED
        return []

    def _fail(self, cause: str) -> FailRequest:
        self.phase = Phase.FAILED
        request_id = self.request.request_id
        return FailRequest(request_id, f"request {request_id}: {cause}; send it again")
