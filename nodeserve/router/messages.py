"""Events into the routing core and commands out of it."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from nodeserve.errors import PeerError
from nodeserve.ids import BlockHash, Generation, LeaseId, LegId, RequestId
from nodeserve.wire.kinds import Role


class LegKind(enum.Enum):
    """What one leg of a request does on its worker.

    PREFILL computes the prompt and leaves its KV under a lease. DECODE pulls that KV and
    generates. WHOLE does both on one worker and hands nothing over.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    WHOLE = "whole"


# ------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A gateway sent a request.

    ``block_hashes`` are those of the full blocks of its prompt, first block first; empty where
    the prompt is not plain tokens. ``whole`` requests can't be handed over. What was sent of a
    ``restorable`` request's answer can be restored on another worker.
    Lower ``priority`` goes first among the requests of its listener, as in vLLM.
    """

    request_id: RequestId
    prompt_tokens: int
    max_tokens: int
    block_hashes: tuple[BlockHash, ...] = ()
    whole: bool = False
    priority: int = 0
    restorable: bool = False
    listener: str = ""


@dataclass(frozen=True, slots=True)
class RequestAborted:
    """The client went away, or its gateway saw a stop string. Unknown ids are ignored."""

    request_id: RequestId
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PrefillFinished:
    """A prefill leg's last output carried a handoff under ``lease_id``."""

    leg_id: LegId
    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class LegStarted:
    """A decode or whole leg produced its first output: whatever it pulled is its own now."""

    leg_id: LegId


@dataclass(frozen=True, slots=True)
class LegFinished:
    """A leg's last output went to the client: also a prefill leg that ended without handoff.

    ``output_tokens`` are those of the whole request.
    """

    leg_id: LegId
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class WorkerAttached:
    """A worker takes requests. ``num_blocks`` KV blocks of ``block_size`` tokens.

    One that is ``draining`` already gets none, as behind WorkerDraining. ``max_model_len``
    bounds prompt and output together, in tokens; None where nothing but KV does.
    """

    generation: Generation
    role: Role
    num_blocks: int
    block_size: int
    max_num_seqs: int
    draining: bool = False
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died or was fenced: nothing it says counts from here on."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """An operator or the planner changed what a worker is used for."""

    generation: Generation
    role: Role


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker gets no new leg, and its legs move to others as those have room.

    ReportDrained follows when it has neither leg nor lease.
    """

    generation: Generation


@dataclass(frozen=True, slots=True)
class AnswersCounted:
    """How many tokens clients have been sent by now, of the answers these legs work on.

    Only legs that may have to go on elsewhere need it, so it is said before a worker is lost,
    and before and while it drains. Unknown ids are ignored.
    """

    sent_tokens: Mapping[LegId, int]


@dataclass(frozen=True, slots=True)
class LoadReported:
    """An engine step's own account of its queues; ``kv_usage`` is a share from 0 to 1."""

    generation: Generation
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A worker's prefix cache now holds these blocks."""

    generation: Generation
    block_hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A worker's prefix cache dropped these blocks; with None all of them."""

    generation: Generation
    block_hashes: tuple[BlockHash, ...] | None


@dataclass(frozen=True, slots=True)
class ListenerChanged:
    """A listener came, or its settings changed: what its requests may take from here on.

    Listeners are tenants. A lower ``priority`` goes first, strictly; those that have the same
    share the GPUs' time by ``weight``. At most ``max_running`` requests run and ``max_queued``
    wait; who waits longer than ``queue_timeout_s`` is failed. None sets no limit.
    """

    listener: str
    priority: int = 0
    weight: float = 1.0
    max_running: int | None = None
    max_queued: int | None = None
    queue_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """New requests are refused from here on."""


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The operator's settings for routing are others from here on; see RouterConfig."""

    local_prefill_tokens: int
    max_queued_requests: int


@dataclass(frozen=True, slots=True)
class TimeElapsed:
    """A time asked for by WakeAt has come."""


Event = (
    RequestArrived
    | RequestAborted
    | PrefillFinished
    | LegStarted
    | LegFinished
    | WorkerAttached
    | WorkerLost
    | RoleChanged
    | WorkerDraining
    | AnswersCounted
    | LoadReported
    | BlocksStored
    | BlocksRemoved
    | ListenerChanged
    | NodeDraining
    | SettingsChanged
    | TimeElapsed
)


# ----------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class StartLeg:
    """Send the request to a worker. A DECODE leg carries the handoff of ``lease_id``."""

    request_id: RequestId
    leg_id: LegId
    generation: Generation
    kind: LegKind
    lease_id: LeaseId | None = None


@dataclass(frozen=True, slots=True)
class AbortLeg:
    """Stop a leg. Its late outputs no longer belong to anybody."""

    leg_id: LegId
    generation: Generation


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Tell the worker that granted a lease to unpin its blocks."""

    generation: Generation
    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class FailRequest:
    """End the client's request with an error; ``exit_code`` is that of its kind in ``errors``."""

    request_id: RequestId
    reason: str
    exit_code: int = PeerError.exit_code


@dataclass(frozen=True, slots=True)
class ReportDrained:
    """A draining worker holds nothing any more."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class ReportNodeDrained:
    """The draining node has no request left."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Hand in TimeElapsed at ``at_s``; it replaces an earlier WakeAt."""

    at_s: float


Command = (
    StartLeg | AbortLeg | ReleaseLease | FailRequest | ReportDrained | ReportNodeDrained | WakeAt
)
