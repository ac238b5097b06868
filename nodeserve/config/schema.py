"""The shape of the configuration file: every key, its type and its default.

``docs/configuration.md`` describes each key; a test keeps the two in step.
"""

import msgspec

from nodeserve.config.node import ArgValue, GatewayKind
from nodeserve.wire.kinds import Role


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. None stands for a key that is not given."""


class WorkersTable(_Table, frozen=True):
    """One ``[[workers]]``: workers that share a role, which must be given, and settings."""

    role: Role | None = None
    count: int | None = None
    tp: int = 1
    gpus: tuple[int | str, ...] | None = None
    cpus: tuple[int, ...] | None = None
    args: dict[str, ArgValue] = {}


class ListenerTable(_Table, frozen=True):
    """One ``[[listener]]``: an address with its gateways."""

    name: str | None = None
    socket: str | None = None
    listen: str | None = None
    gateway: GatewayKind | None = None
    gateways: int = 1
    mode: str = "0660"
    group: str | None = None
    api_key_file: str | None = None
    priority: int = 0
    weight: float = 1.0
    max_running_requests: int | None = None
    max_queued_requests: int | None = None
    queue_timeout_s: float = 600.0
    kv_host_share: float | None = None
    args: dict[str, ArgValue] = {}


class EngineTable(_Table, frozen=True):
    """``[engine]``: what all workers' engines share."""

    args: dict[str, ArgValue] = {}


class KvHostTable(_Table, frozen=True):
    """``[kv.host]``: the tier in host memory that all workers share."""

    size: int | str


class KvDiskTable(_Table, frozen=True):
    """``[kv.disk]``: the tier below it."""

    directories: tuple[str, ...]
    size: int | str


class KvTable(_Table, frozen=True):
    """``[kv]``: how KV is handed over, and where it is kept below the GPUs."""

    async_load: bool = True
    load_at_once_bytes: int = 16 << 20
    lease_ttl_s: float = 60.0
    gpu_transport: str = "cuda_ipc"
    min_bandwidth_gbps: float | None = None
    log: str | None = None
    host: KvHostTable | None = None
    disk: KvDiskTable | None = None


class RouterTable(_Table, frozen=True):
    """``[router]``: where requests go and how many may wait."""

    local_prefill_tokens: int = 16
    max_queued_requests: int = 10_000


class DrainTable(_Table, frozen=True):
    """``[drain]``: how the node stops."""

    deadline_s: float = 60.0


class LivenessTable(_Table, frozen=True):
    """``[liveness]``: when a process that exists counts as dead."""

    stopped_s: float = 0.2
    silent_s: float = 1.0
    step_s: float = 10.0
    first_step_s: float = 120.0


class AccountingTable(_Table, frozen=True):
    """``[accounting]``: whether and where energy and tokens are booked."""

    enabled: bool = False
    db: str | None = None
    node: str | None = None
    zone: str = ""
    window_days: float = 7.0
    request_days: float = 90.0


class HealthTable(_Table, frozen=True):
    """``[health]``: what an operator has done about signals of devices instead."""

    overrides: dict[str, str] = {}


class SimulateTable(_Table, frozen=True):
    """``[simulate]``: engines that need neither weights nor a GPU."""

    system: str
    speedup: float = 1.0


class FileConfig(_Table, frozen=True):
    """The whole file. Flags are laid over it before it is checked."""

    model: str | None = None
    served_model_name: str | tuple[str, ...] | None = None
    socket: str | None = None
    runtime_dir: str | None = None
    workers: tuple[WorkersTable, ...] = ()
    listener: tuple[ListenerTable, ...] = ()
    engine: EngineTable = EngineTable()
    kv: KvTable = KvTable()
    router: RouterTable = RouterTable()
    drain: DrainTable = DrainTable()
    liveness: LivenessTable = LivenessTable()
    accounting: AccountingTable = AccountingTable()
    health: HealthTable = HealthTable()
    simulate: SimulateTable | None = None
