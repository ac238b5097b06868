"""Control messages between nodeserve's own processes and the CLI.

Every message is a frozen msgspec Struct, tagged by its name and carried as msgpack in one
ZeroMQ frame. The supervisor binds a ROUTER; everybody else connects a DEALER. New fields get
defaults and a field never changes type, so that neighbouring releases understand each other.
"""

from typing import Final

import msgspec

from nodeserve.errors import PeerError
from nodeserve.wire.device_control import DeviceMessage
from nodeserve.wire.device_report import DeviceSample, Finding
from nodeserve.wire.kinds import Role
from nodeserve.wire.kv_control import KvMessage, KvTierStatus
from nodeserve.wire.ledger_control import LedgerMessage
from nodeserve.wire.spawn import TenantSpec
from nodeserve.wire.status import (
    HandoffStats,
    KvPath,
    ListenerLoad,
    ProcessStatus,
    Quantiles,
    RequestTrace,
    WorkerLoad,
)


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """A control message."""


class WireFields(msgspec.Struct, frozen=True, kw_only=True):
    """Field names, in wire order, of the positional structs of the engine's vLLM version."""

    request: tuple[str, ...]
    outputs: tuple[str, ...]
    output: tuple[str, ...]
    vllm_version: str


# ------------------------------------------------------------------ child to supervisor


class WorkerHello(_Message, frozen=True, kw_only=True):
    """A worker process runs and begins to load its engine."""

    name: str
    generation: int
    pid: int


class WorkerProgress(_Message, frozen=True, kw_only=True):
    """What a starting worker is doing, for people: one short phrase."""

    generation: int
    phase: str


class WorkerReady(_Message, frozen=True, kw_only=True):
    """The engine takes requests.

    ``ready`` is the engine's EngineCoreReadyResponse, msgpack, as vLLM encodes it.
    ``kv_events_endpoint`` is the ``ipc://`` address of its KV event publisher, or None.
    ``kv_block_bytes`` is what one block holds over all layers and all ranks.
    ``features`` are what not every engine can do: HANDOFF, PROBE, RESUME.
    """

    name: str
    generation: int
    fields: WireFields
    ready: bytes
    block_size: int
    num_gpu_blocks: int
    kv_block_bytes: int
    max_model_len: int
    kv_events_endpoint: str | None = None
    features: tuple[str, ...] = ()


class WorkerHeartbeat(_Message, frozen=True, kw_only=True):
    """Sent several times a second by a thread beside the engine loop.

    ``steps`` counts engine steps: it must advance while ``num_requests`` is above zero.
    ``next_s`` is when the next one follows.
    """

    generation: int
    steps: int
    num_requests: int
    next_s: float = 0.25


class ChildFailed(_Message, frozen=True, kw_only=True):
    """A child cannot go on; ``cause`` is one sentence. It exits right after."""

    generation: int
    cause: str
    retryable: bool = True


class DispatcherReady(_Message, frozen=True, kw_only=True):
    """The dispatcher's worker-side sockets are bound."""

    generation: int
    pid: int


class DispatcherHeartbeat(_Message, frozen=True, kw_only=True):
    """Sent from the dispatcher's own loop; ``next_s`` is when the next one follows."""

    generation: int
    next_s: float = 0.5


class WorkerServing(_Message, frozen=True, kw_only=True):
    """The dispatcher routes requests to this worker."""

    generation: int


class WorkerDrained(_Message, frozen=True, kw_only=True):
    """A draining worker has no request and no leased block left."""

    generation: int


class WorkerGivenUp(_Message, frozen=True, kw_only=True):
    """The dispatcher cannot or may not use this worker and has fenced it; it must be replaced."""

    generation: int
    reason: str


class GatewayGivenUp(_Message, frozen=True, kw_only=True):
    """The dispatcher has let go of this gateway, which must be replaced."""

    generation: int
    reason: str


class GatewayServing(_Message, frozen=True, kw_only=True):
    """The dispatcher has sent the node's ready message to this gateway."""

    generation: int


# -------------------------------------------------------------- supervisor to dispatcher


class AttachWorker(_Message, frozen=True, kw_only=True):
    """Route to this worker from now on; one that drains ends what it has and gets nothing."""

    name: str
    generation: int
    role: Role
    ready: WorkerReady
    draining: bool = False


class DetachWorker(_Message, frozen=True, kw_only=True):
    """This worker is gone: fence its generation, settle its requests."""

    generation: int
    reason: str


class SetWorkerRole(_Message, frozen=True, kw_only=True):
    """Change what a worker is used for; requests in flight stay where they are."""

    generation: int
    role: Role


class DrainWorker(_Message, frozen=True, kw_only=True):
    """Send this worker nothing new, move what it runs; report WorkerDrained when it has none."""

    generation: int


class AttachGateway(_Message, frozen=True, kw_only=True):
    """Become the engine of this gateway, at its two ZeroMQ addresses.

    ``name`` is the process's. An empty ``listener`` has that name too.
    """

    name: str
    generation: int
    input_address: str
    output_address: str
    listener: str = ""
    tenant: TenantSpec = TenantSpec()


class DetachGateway(_Message, frozen=True, kw_only=True):
    """This gateway is gone: abort what its clients had asked for."""

    generation: int


class DrainNode(_Message, frozen=True, kw_only=True):
    """Accept no new request; report NodeDrained when none is left."""


class NodeDrained(_Message, frozen=True, kw_only=True):
    """No request is left on the node."""


class SetRouting(_Message, frozen=True, kw_only=True):
    """Route by these settings from now on; they mean what they mean in a DispatcherSpec."""

    local_prefill_tokens: int
    max_queued_requests: int
    names_listeners: bool = False
    min_bandwidth_gbps: float | None = None


class SayAgain(_Message, frozen=True, kw_only=True):
    """Repeat every report that still holds; the supervisor may have missed some of them.

    Sent to workers too, which repeat their WorkerReady.
    """


class ReportStatus(_Message, frozen=True, kw_only=True):
    """Answer with a DispatcherStatus carrying the same ``call_id``."""

    call_id: int


class DispatcherStatus(_Message, frozen=True, kw_only=True):
    """The data plane's own account of itself. Counters run since the dispatcher started."""

    call_id: int
    workers: tuple[WorkerLoad, ...] = ()
    queued_requests: int = 0
    running_requests: int = 0
    finished_requests: int = 0
    failed_requests: int = 0
    aborted_requests: int = 0
    resumed_requests: int = 0
    rejected_frames: int = 0
    stale_outputs: int = 0
    ttft: Quantiles = Quantiles()
    itl: Quantiles = Quantiles()
    handoffs: HandoffStats = HandoffStats()
    recent: tuple[RequestTrace, ...] = ()
    listeners: tuple[ListenerLoad, ...] = ()
    kv_paths: tuple[KvPath, ...] = ()


# ---------------------------------------------------------------------- CLI to supervisor


class StatusRequest(_Message, frozen=True, kw_only=True):
    """Ask for the node's status; answered with StatusReply."""


class StatusReply(_Message, frozen=True, kw_only=True):
    """The node's status; `nodeserve status --json` prints exactly this, minus the tag."""

    state: str
    socket: str
    version: str
    vllm_version: str | None
    model: str
    served_model_name: str
    uptime_s: float
    listeners: tuple[str, ...]
    processes: tuple[ProcessStatus, ...]
    requests: DispatcherStatus | None = None
    detail: str | None = None
    simulate: str | None = None
    kv: KvTierStatus | None = None
    reloading: tuple[str, ...] = ()
    reload_halted: str | None = None
    devices: tuple[DeviceSample, ...] = ()
    findings: tuple[Finding, ...] = ()


class DrainRequest(_Message, frozen=True, kw_only=True):
    """Drain one worker (it ends and stays down), or with None the whole node (it exits).

    ``force`` also drains the last worker that decodes or prefills.
    """

    worker: str | None = None
    force: bool = False


class RestartRequest(_Message, frozen=True, kw_only=True):
    """Have a process finish what it does, end it, and start its next generation.

    ``worker`` names a process of any kind but the supervisor.
    """

    worker: str
    immediately: bool = False


class RoleRequest(_Message, frozen=True, kw_only=True):
    """Change a worker's role; with ``force`` also that of the last one that decodes or prefills."""

    worker: str
    role: Role
    force: bool = False


class ReloadRequest(_Message, frozen=True, kw_only=True):
    """Replace the supervisor by the program on disk and read the configuration again.

    With ``dry_run`` only say what that would change.
    """

    dry_run: bool = False


class CommandReply(_Message, frozen=True, kw_only=True):
    """The outcome of a command: ``error`` is None when it is done.

    ``exit_code`` goes with an error and is that of its kind in errors.py.
    """

    detail: str = ""
    error: str | None = None
    exit_code: int = PeerError.exit_code


Message = (
    WorkerHello
    | WorkerProgress
    | WorkerReady
    | WorkerHeartbeat
    | ChildFailed
    | DispatcherReady
    | DispatcherHeartbeat
    | WorkerServing
    | WorkerDrained
    | WorkerGivenUp
    | GatewayGivenUp
    | GatewayServing
    | AttachWorker
    | DetachWorker
    | SetWorkerRole
    | DrainWorker
    | AttachGateway
    | DetachGateway
    | DrainNode
    | NodeDrained
    | SetRouting
    | SayAgain
    | ReportStatus
    | DispatcherStatus
    | StatusRequest
    | StatusReply
    | DrainRequest
    | RestartRequest
    | RoleRequest
    | ReloadRequest
    | CommandReply
    | KvMessage
    | DeviceMessage
    | LedgerMessage
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the one frame that carries ``message``."""
    return _ENCODER.encode(message)


def decode(frame: bytes) -> Message:
    """Return the message in ``frame``.

    Raises:
        ValueError: The frame is not a control message: truncated, oversized nesting, bad
            UTF-8, wrong types or an unknown tag. The caller drops and counts it.
    """
    try:
        return _DECODER.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        text = f"control frame of {len(frame)} bytes is not a control message: {error}"
        raise ValueError(text) from error
