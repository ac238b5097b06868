"""What a child process is told when it is born. Travels once, as msgpack, through its fork."""

from typing import Final

import msgspec

from nodeserve.wire.kinds import Role

GRAMMAR_BACKEND: Final = "xgrammar"
"""The node's one grammar backend: an engine latches the first it is asked for, so that gateways,
dispatcher and engines must agree. Source: vllm/v1/structured_output/__init__.py (0.32)."""


PREFIX_HASH_ALGO: Final = "sha256_cbor"
"""How every engine of the node names blocks by their content: canonical, unlike vLLM's default,
which hashes a pickle. Source: vllm/v1/core/kv_cache_utils.py (0.32)."""

GPU_TRANSPORTS: Final = ("cuda_ipc", "cuda_vmm")
"""How workers can share GPU memory: by IPC handle, or by file descriptor."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine a worker runs and with what.

    ``args`` are vLLM engine arguments by their Python names (``max_model_len``), already
    merged from the config, the role and the command line.
    ``simulate`` is a system such as ``8xh100-sxm``; None runs vLLM.
    ``speedup`` divides simulated step times; ``inf`` makes them zero.
    """

    model: str
    served_model_name: str
    tp: int
    args: dict[str, bool | int | float | str | list[object] | dict[str, object] | None]
    simulate: str | None = None
    speedup: float = 1.0


class KvSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How KV is handed over between workers, and where it is kept beyond them.

    ``lease_ttl_s`` bounds how long a handoff stays pinned when nobody releases it.
    ``one_tp`` and ``one_block_size`` say that the node's workers do not differ in these, so that
    KV need not be divided.
    ``tier_address`` is where the block manager listens; None where there is no tier below the GPU.
    ``gpu_transport`` is how workers share GPU memory, one of GPU_TRANSPORTS.
    """

    async_load: bool = True
    lease_ttl_s: float = 60.0
    tier_address: str | None = None
    one_tp: bool = True
    one_block_size: bool = True
    gpu_transport: str = "cuda_ipc"


class TenantSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of one listener may take of the node.

    A lower ``priority`` goes first, strictly; listeners that have the same share the GPUs' time
    by ``weight``. None sets no limit of the listener's own. Who has not started after
    ``queue_timeout_s`` is failed; ``inf`` lets requests wait for ever.
    """

    priority: int = 0
    weight: float = 1.0
    max_running_requests: int | None = None
    max_queued_requests: int | None = None
    queue_timeout_s: float = 600.0


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one worker process needs to know.

    ``generation`` is its engine_index on the EngineCore wire. ``cpus`` and ``gpu_uuids`` are
    the whole TP group's; one of them is empty.
    """

    name: str
    generation: int
    role: Role
    runtime_dir: str
    control_address: str
    input_address: str
    output_address: str
    kv_events_address: str
    engine: EngineSpec
    kv: KvSpec
    cpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()


class DispatcherSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the dispatcher needs to know.

    ``local_prefill_tokens`` is the uncached prompt length up to which a request skips the
    prefill worker. ``max_queued_requests`` bounds what waits on the node.
    ``prompt_token_s`` and ``output_token_s`` are what a token takes of the GPUs, as modelled;
    None where nothing is known of them. ``names_listeners`` is whether engines are told which
    listener a request came through, which they need to know where there are tiers below the GPU.
    ``min_bandwidth_gbps`` is below what a path for KV is refused; None refuses none that works.
    """

    generation: int
    runtime_dir: str
    control_address: str
    input_address: str
    output_address: str
    local_prefill_tokens: int = 0
    max_queued_requests: int = 10_000
    utility_deadline_s: float = 5.0
    grammar_backend: str = GRAMMAR_BACKEND
    prompt_token_s: float | None = None
    output_token_s: float | None = None
    names_listeners: bool = False
    min_bandwidth_gbps: float | None = None


class DiskTierSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where KV lies on disk: ``max_bytes`` in all ``directories`` together, striped over them."""

    directories: tuple[str, ...]
    max_bytes: int


class BlockManagerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the block manager needs to know.

    Its fds are those of the host tier's memory, which outlives it: the slot directory, then the
    arenas, each of ``arena_bytes`` bytes, in the order of their numbers.
    ``quotas`` bounds a listener's part of the host tier, above 0 and at most 1; others have no
    bound. ``state_dir`` keeps what is worth keeping over restarts, such as digests of weights.
    ``log_path`` is a file for every look-up, store and eviction, to compare policies with.
    """

    generation: int
    runtime_dir: str
    control_address: str
    tier_address: str
    arena_bytes: int
    state_dir: str
    quotas: dict[str, float] = {}
    disk: DiskTierSpec | None = None
    log_path: str | None = None


class LedgerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the ledger needs to know.

    ``db_path`` is its file, which outlives every node that writes it; ``run_id`` is that of this
    supervisor process, for ids of requests are unique within it only. ``node`` and ``zone`` say
    whose figures they are. Windows older than ``window_days`` become sums by the hour, and
    requests older than ``request_days`` sums by listener. ``budgets`` has the listeners with a
    budget of energy, each with its period: ``hour``, ``day`` or ``month``, of UTC.
    """

    generation: int
    runtime_dir: str
    control_address: str
    ledger_address: str
    db_path: str
    run_id: str
    node: str = ""
    zone: str = ""
    window_days: float = 7.0
    request_days: float = 90.0
    budgets: dict[str, str] = {}


class InflightLimitSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a listener's python gateways may have in flight, all of them together.

    They count in the file ``counts_path``, each in its own of ``num_places`` places.
    """

    max_requests: int
    counts_path: str
    place: int = 0
    num_places: int = 1


class PythonGatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway that is vLLM's Python API server needs; its listening fd comes beside it.

    Without a ``limit`` it takes every request.
    """

    name: str
    generation: int
    listen_address: str
    input_address: str
    output_address: str
    engine: EngineSpec
    args: tuple[str, ...] = ()
    limit: InflightLimitSpec | None = None
