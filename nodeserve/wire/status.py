"""What a node says of itself: the parts of the status that people and scripts read.

New fields get defaults and a field never changes type; docs/status.md describes them.
"""

import msgspec

from nodeserve.wire.kinds import ProcessKind, Role


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """A latency's distribution over the last ``window_s``, in ms; None where nothing was seen."""

    count: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    window_s: float = 60.0


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What the dispatcher knows of one worker."""

    generation: int
    role: Role
    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    kv_usage: float = 0.0
    num_gpu_blocks: int = 0
    draining: bool = False
    prompt_tokens: int = 0
    generation_tokens: int = 0


class ListenerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One listener's requests, since the dispatcher started.

    ``refused`` found a full queue and ``expired`` waited too long; ``turned_away`` were answered
    with 429 by python gateways and never reached the dispatcher. ``gpu_s`` is modelled.
    """

    name: str
    running: int = 0
    queued: int = 0
    refused: int = 0
    expired: int = 0
    turned_away: int = 0
    gpu_s: float = 0.0


class HandoffStats(msgspec.Struct, frozen=True, kw_only=True):
    """Handoffs since the dispatcher started."""

    completed: int = 0
    failed: int = 0
    bytes: int = 0
    leased: int = 0
    latency: Quantiles = Quantiles()


class KvPath(msgspec.Struct, frozen=True, kw_only=True):
    """How fast KV comes to a worker, as measured when all were there and idle.

    ``source`` is another worker, or ``host`` for the host tier.

    Figures are None and ``error`` says why where it could not be measured. Bandwidths are in
    GB/s (10^9), of 64 MB in pieces of 64 KB, of 256 KB and in one. ``floor_gbps`` is what was
    asked for of the last; ``verdict`` is ``good``, ``slow`` (below it, and used), ``refused``
    (not used: the prefill worker serves whole requests instead) or ``unknown``.
    """

    source: str
    destination: str
    verdict: str
    transport: str | None = None
    latency_us: float | None = None
    gbps_64kb: float | None = None
    gbps_256kb: float | None = None
    gbps_64mb: float | None = None
    floor_gbps: float = 0.0
    error: str | None = None


class RequestTrace(msgspec.Struct, frozen=True, kw_only=True):
    """Where one finished request ran, for `nodeserve chat`, the demo and the access log.

    ``request_id`` is the id on the gateway's wire: the client's id, perhaps with a suffix.
    Times are in ms since the request reached the dispatcher. ``exit_code`` goes with ``error`` as
    in a CommandReply.
    """

    request_id: str
    listener: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish: str
    error: str | None = None
    prefill_worker: str | None = None
    decode_worker: str | None = None
    handoff_bytes: int = 0
    handoff_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    resumed: int = 0
    exit_code: int = 0


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the node. ``state`` is a phase of lifecycle.process.

    ``tp`` is a worker's tensor-parallel size, None for other processes.
    """

    name: str
    kind: ProcessKind
    state: str
    generation: int = 0
    pid: int | None = None
    role: Role | None = None
    uptime_s: float = 0.0
    restarts: int = 0
    detail: str | None = None
    load: WorkerLoad | None = None
    version: str = ""
    tp: int | None = None
