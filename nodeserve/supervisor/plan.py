"""From a configuration to the processes of a node and what each is told."""

import itertools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config.keys import key_file, read_api_keys
from nodeserve.config.node import GatewayKind, Listener, NodeConfig, TierSettings, Worker
from nodeserve.errors import InvariantError
from nodeserve.gateway.launch import GatewayLaunch
from nodeserve.ids import Generation
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.supervisor.exec_child import FIRST_FD
from nodeserve.supervisor.notify import PRIVATE_VARIABLES
from nodeserve.supervisor.runtime import RuntimeDirectory, kv_events_name
from nodeserve.supervisor.token_cost import token_cost
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.spawn import (
    BlockManagerSpec,
    DispatcherSpec,
    EngineSpec,
    KvSpec,
    LedgerSpec,
    MonitorSpec,
    WorkerSpec,
)

DISPATCHER: Final = "dispatcher"
BLOCK_MANAGER: Final = "block-manager"
MONITOR: Final = "monitor"
LEDGER: Final = "ledger"
LIGHT: Final = "forkserver"
HEAVY: Final = "forkserver-vllm"

POWERCAP: Final = "/sys/class/powercap"

LIGHT_MODULES: Final = (
    "nodeserve.dispatcher.main",
    "nodeserve.block_manager.main",
    "nodeserve.worker.main",
    "nodeserve.engine.simulated.engine",
    "nodeserve.supervisor.exec_child",
)

PYTHON_GATEWAY_MODULES: Final = (
    "nodeserve.gateway.python_server",
    "nodeserve.engine.vllm.api_server",
    "nodeserve.engine.vllm.api_server_warm",
)


def gateway_names(listener: Listener) -> list[str]:
    """Return the names of a listener's gateway processes."""
    if listener.gateways == 1:
        return [f"gateway-{listener.name}"]
    return [f"gateway-{listener.name}-{place}" for place in range(listener.gateways)]


def has_python_gateway(config: NodeConfig) -> bool:
    """Whether a listener is served by vLLM's Python API server."""
    return any(listener.gateway is GatewayKind.PYTHON for listener in config.listeners)


def needs_vllm(config: NodeConfig) -> bool:
    """Whether any process of the node imports vLLM."""
    return config.simulate is None or has_python_gateway(config)


def slot_plans(config: NodeConfig) -> list[SlotPlan]:
    """Return every process of the node."""
    plans = [SlotPlan(LIGHT, ProcessKind.FORKSERVER)]
    if needs_vllm(config):
        plans.append(SlotPlan(HEAVY, ProcessKind.FORKSERVER))
    plans.append(SlotPlan(DISPATCHER, ProcessKind.DISPATCHER, LIGHT))
    if config.tiers is not None:
        plans.append(SlotPlan(BLOCK_MANAGER, ProcessKind.BLOCK_MANAGER, LIGHT))
    if config.accounting is not None:
        plans.append(SlotPlan(LEDGER, ProcessKind.LEDGER, LIGHT))
        plans.append(SlotPlan(MONITOR, ProcessKind.MONITOR, LIGHT))
    home = LIGHT if config.simulate else HEAVY
    meters = worker_meters(config)
    plans += [
        SlotPlan(worker.name, ProcessKind.WORKER, home, worker.role, meters[worker.name])
        for worker in config.workers
    ]
    for listener in config.listeners:
        kind = HEAVY if listener.gateway is GatewayKind.PYTHON else LIGHT
        plans += [SlotPlan(name, ProcessKind.GATEWAY, kind) for name in gateway_names(listener)]
    return plans


def worker_meters(config: NodeConfig) -> dict[str, tuple[str, ...]]:
    """Return the meters of each worker's GPUs: UUIDs, or ``sim-0``, ``sim-1``, ... in their order.

    Workers on CPUs have none.
    """
    if config.simulate is None:
        return {worker.name: worker.gpu_uuids for worker in config.workers}
    numbers = itertools.count()
    return {
        worker.name: tuple(f"sim-{next(numbers)}" for _ in range(worker.tp))
        for worker in config.workers
    }


def dispatcher_spec(
    config: NodeConfig, runtime: RuntimeDirectory, generation: Generation
) -> DispatcherSpec:
    """Return what a dispatcher is told. Reads the model's ``config.json``."""
    cost = token_cost(config)
    return DispatcherSpec(
        generation=generation,
        runtime_dir=str(runtime.path),
        control_address=runtime.address("control"),
        input_address=runtime.address("engine-in"),
        output_address=runtime.address("engine-out"),
        local_prefill_tokens=config.router.local_prefill_tokens,
        max_queued_requests=config.router.max_queued_requests,
        prompt_token_s=None if cost is None else cost.prompt_token_s,
        output_token_s=None if cost is None else cost.output_token_s,
        names_listeners=config.tiers is not None,
        min_bandwidth_gbps=config.router.min_bandwidth_gbps,
        ledger_address=ledger_address(config, runtime),
        model=config.served_model_names[0],
    )


def ledger_address(config: NodeConfig, runtime: RuntimeDirectory) -> str | None:
    """Return where the ledger listens, whichever incarnation it is; None where there is none."""
    return None if config.accounting is None else runtime.address("ledger")


def ledger_spec(
    config: NodeConfig,
    runtime: RuntimeDirectory,
    generation: Generation,
    *,
    run_id: str,
    db_path: Path,
) -> LedgerSpec:
    """Return what a ledger is told.

    Raises:
        InvariantError: The node has none.
    """
    accounting, address = config.accounting, ledger_address(config, runtime)
    if accounting is None or address is None:
        raise InvariantError(f"{LEDGER}: this node books nothing; report this bug")
    return LedgerSpec(
        generation=generation,
        runtime_dir=str(runtime.path),
        control_address=runtime.address("control"),
        ledger_address=address,
        db_path=accounting.db_path or str(db_path),
        run_id=run_id,
        node=accounting.node or platform.node(),
        zone=accounting.zone,
        window_days=accounting.window_days,
        request_days=accounting.request_days,
    )


def monitor_spec(
    config: NodeConfig, runtime: RuntimeDirectory, generation: Generation, *, run_began_s: float
) -> MonitorSpec:
    """Return what a monitor is told."""
    accounting = config.accounting
    uuids = [uuid for worker in config.workers for uuid in worker.gpu_uuids]
    return MonitorSpec(
        generation=generation,
        runtime_dir=str(runtime.path),
        control_address=runtime.address("control"),
        run_began_s=run_began_s,
        ledger_address=ledger_address(config, runtime),
        gpu_uuids=tuple(dict.fromkeys(uuids)),
        simulate=config.simulate,
        script=None if config.simulate is None else str(runtime.path / "devices.script"),
        kernel_log=config.simulate is None,
        powercap_root=POWERCAP if config.simulate is None else None,
        health_overrides={} if accounting is None else accounting.health_overrides,
    )


def block_manager_spec(
    config: NodeConfig,
    tiers: TierSettings,
    runtime: RuntimeDirectory,
    generation: Generation,
    *,
    arena_bytes: int,
    state_dir: Path,
) -> BlockManagerSpec:
    """Return what a block manager is told; its memory's fds come beside it."""
    return BlockManagerSpec(
        generation=generation,
        runtime_dir=str(runtime.path),
        control_address=runtime.address("control"),
        tier_address=tier_address(runtime),
        arena_bytes=arena_bytes,
        state_dir=str(state_dir),
        quotas=config.kv_quotas,
        disk=tiers.disk,
        log_path=tiers.log_path,
    )


def tier_address(runtime: RuntimeDirectory) -> str:
    """Return where the block manager listens for engines, whichever incarnation it is."""
    return runtime.address("kv-tier")


def engine_spec(config: NodeConfig, worker: Worker) -> EngineSpec:
    """Return which engine a worker runs."""
    return EngineSpec(
        model=config.model,
        served_model_name=config.served_model_names[0],
        tp=worker.tp,
        args=dict(worker.args),
        simulate=config.simulate,
        speedup=config.speedup,
    )


def worker_spec(
    config: NodeConfig, runtime: RuntimeDirectory, worker: Worker, generation: Generation
) -> WorkerSpec:
    """Return what a worker is told."""
    return WorkerSpec(
        name=worker.name,
        generation=generation,
        role=worker.role,
        runtime_dir=str(runtime.path),
        control_address=runtime.address("control"),
        input_address=runtime.address("engine-in"),
        output_address=runtime.address("engine-out"),
        kv_events_address=runtime.address(kv_events_name(generation)),
        engine=engine_spec(config, worker),
        kv=config.kv if config.tiers is None else _with_tier(config.kv, runtime),
        cpus=worker.cpus,
        gpu_uuids=worker.gpu_uuids,
        meters=worker_meters(config)[worker.name],
        ledger_address=ledger_address(config, runtime),
    )


def _with_tier(kv: KvSpec, runtime: RuntimeDirectory) -> KvSpec:
    return msgspec.structs.replace(kv, tier_address=tier_address(runtime))


def gateway_launch(
    config: NodeConfig,
    runtime: RuntimeDirectory,
    listener: Listener,
    generation: Generation,
    *,
    name: str,
    http_fd: int,
) -> GatewayLaunch:
    """Return what is known when the gateway process ``name`` starts.

    A rust gateway gets its fds under the numbers that ``exec_child`` gives them.

    Raises:
        ConfigError: The listener's key file has become unreadable or empty.
    """
    rust = listener.gateway is GatewayKind.RUST
    return GatewayLaunch(
        listener=listener,
        generation=generation,
        runtime_dir=runtime.path,
        engine=engine_spec(config, config.workers[0]),
        served_model_names=config.served_model_names,
        api_keys=_api_keys(listener),
        http_fd=FIRST_FD if rust else http_fd,
        drain_s=config.drain_deadline_s,
        place=gateway_names(listener).index(name),
    )


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that every process of the node starts from.

    What systemd tells the daemon is not meant for its children.
    """
    kept = {name: value for name, value in environ.items() if name not in PRIVATE_VARIABLES}
    kept.setdefault("PATH", os.defpath)
    return kept


def _api_keys(listener: Listener) -> tuple[str, ...]:
    given = listener.api_key_file
    return () if given is None else read_api_keys(key_file(given, os.environ))
