"""The resolved configuration of a node: what every other part of nodeserve is told."""

import enum
from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import DiskTierSpec, KvSpec, TenantSpec

ArgValue: TypeAlias = bool | int | float | str | list[object] | dict[str, object] | None
"""A value of a vLLM argument."""

Args: TypeAlias = Mapping[str, ArgValue]
"""vLLM arguments by their Python names, for example ``max_model_len``."""


class GatewayKind(enum.StrEnum):
    """vLLM's two front ends: its Python API server, and the ``vllm-rs`` binary."""

    PYTHON = "python"
    RUST = "rust"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One place where clients connect, with the gateways that serve it.

    Either ``socket`` (an absolute path) or ``host`` and ``port`` are set, never both.

    Attributes:
        gateways: How many gateway processes share the listening socket.
        mode: Permission bits of the Unix socket, for example ``0o660``.
        group: Group that owns the Unix socket; None keeps the daemon's own.
        api_key_file: One key a line; clients must send one of them. A path, or ``credential:NAME``
            of the service manager. None asks for no key.
        args: Arguments of vLLM's front end by their Python names.
        tenant: What its requests may take of the node.
        kv_host_share: How much of the host tier its blocks may fill, above 0 and at most 1; None
            sets no bound.
    """

    name: str
    socket: str | None = None
    host: str | None = None
    port: int | None = None
    gateway: GatewayKind
    gateways: int = 1
    mode: int = 0o660
    group: str | None = None
    api_key_file: str | None = None
    args: dict[str, ArgValue] = {}
    tenant: TenantSpec = TenantSpec()
    kv_host_share: float | None = None

    @property
    def address(self) -> str:
        """The socket's path, or ``host:port`` (IPv6 hosts in brackets), for people."""
        if self.socket is not None:
            return self.socket
        host = f"[{self.host}]" if self.host is not None and ":" in self.host else self.host
        return f"{host}:{self.port}"


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's name, place and engine.

    Attributes:
        gpu_uuids: The GPUs of the whole TP group, ``tp`` of them; empty on CPU and simulated.
        cpus: Logical CPUs the worker is bound to; empty binds it to none in particular.
        args: vLLM engine arguments: the role's defaults, the file's and the command line's.
    """

    name: str
    role: Role
    tp: int = 1
    gpu_uuids: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    args: dict[str, ArgValue] = {}


class TierSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where KV is kept below the GPUs.

    Attributes:
        host_bytes: Size of the tier in host memory.
        disk: The tier below it; None for none.
        log_path: File for every look-up, store and eviction; None keeps none.
    """

    host_bytes: int
    disk: DiskTierSpec | None = None
    log_path: str | None = None


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the dispatcher's router is told.

    Attributes:
        local_prefill_tokens: Uncached prompt length up to which a request skips the prefill
            worker.
        max_queued_requests: How many requests may wait on the node.
        min_bandwidth_gbps: Below this a path for KV is refused; None refuses none that works.
    """

    local_prefill_tokens: int = 16
    max_queued_requests: int = 10_000
    min_bandwidth_gbps: float | None = None


class LivenessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a process that exists counts as dead.

    Attributes:
        stopped_s: How long it may be stopped by a signal or a debugger.
        silent_s: How long its heartbeat may stay away while nothing in it runs.
        step_s: How long any engine step may take; longer ones may if those before did.
        first_step_s: The same for the first steps, which may compile something.
    """

    stopped_s: float = 0.2
    silent_s: float = 1.0
    step_s: float = 10.0
    first_step_s: float = 120.0


class AccountingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where energy and tokens are booked, and for how long in detail.

    Attributes:
        db_path: The ledger's file; None has it in the state directory.
        node: What the node is called in reports; its host name where it is None.
        zone: Where it draws its power, as in the table of carbon intensities; may be empty.
        window_days: Older windows of meters become sums by the hour.
        request_days: Older requests become sums by listener.
        health_overrides: What is done about signals of devices instead, by the table's names.
    """

    db_path: str | None = None
    node: str | None = None
    zone: str = ""
    window_days: float = 7.0
    request_days: float = 90.0
    health_overrides: dict[str, str] = {}


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the supervisor needs to know; checked whole before anything starts.

    Attributes:
        model: Absolute path of the model's directory.
        served_model_names: What clients may call the model; the first is shown to them.
        runtime_dir: Absolute path of the directory for internal sockets and logs, mode 0700.
        listeners: At least one. The first with a Unix socket is the node's own address.
        drain_deadline_s: How long requests in flight may take when the node stops.
        liveness: When a process that exists counts as dead.
        simulate: A system such as ``8xh100-sxm``; None runs vLLM.
        speedup: Divides simulated step times; ``inf`` makes them zero.
        tiers: Where KV is kept below the GPUs; None where it is not.
        accounting: How energy and tokens are booked and devices watched; None does neither.
        warnings: What the operator should look at, though the node can start.
    """

    model: str
    served_model_names: tuple[str, ...]
    runtime_dir: str
    listeners: tuple[Listener, ...]
    workers: tuple[Worker, ...]
    kv: KvSpec = KvSpec()
    router: RouterSettings = RouterSettings()
    drain_deadline_s: float = 60.0
    liveness: LivenessSettings = LivenessSettings()
    simulate: str | None = None
    speedup: float = 1.0
    tiers: TierSettings | None = None
    accounting: AccountingSettings | None = None
    warnings: tuple[str, ...] = ()

    @property
    def kv_quotas(self) -> dict[str, float]:
        """Which share of the host tier each listener may fill; who has no bound is not in it."""
        shares = ((listener.name, listener.kv_host_share) for listener in self.listeners)
        return {name: share for name, share in shares if share is not None}
