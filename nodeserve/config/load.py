"""Let the configuration file and the command line meet in one whole-checked NodeConfig."""

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config import paths
from nodeserve.config.accounting import resolve_accounting
from nodeserve.config.facts import Cpu, Gpu, Memory, ModelFacts, Topology
from nodeserve.config.features import ON_COMMAND_LINE, refuse_args, refuse_model
from nodeserve.config.layout import Wish, place_workers, whole_wish, wished_tables
from nodeserve.config.listeners import ListenerDefaults, resolve_listeners
from nodeserve.config.model import default_names, find_model
from nodeserve.config.node import (
    ArgValue,
    GatewayKind,
    Listener,
    LivenessSettings,
    NodeConfig,
    RouterSettings,
    Worker,
)
from nodeserve.config.peer_paths import refuse_gaps
from nodeserve.config.problems import COMMAND_LINE, Problems, nearest
from nodeserve.config.read import read_struct
from nodeserve.config.schema import FileConfig, ListenerTable
from nodeserve.config.tiers import TierWish, check_users, resolve_tiers
from nodeserve.config.vllm_args import check_args, parse_command_line, split_parts
from nodeserve.errors import ConfigError
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import GPU_TRANSPORTS, KvSpec

_SYSTEM: Final = re.compile(r"^(?P<count>[1-9]\d{0,2})x(?P<gpu>[a-z0-9][a-z0-9.-]*)$")

_SIMULATED: Final = "simulated-"
"""What the UUIDs of GPUs that are not there begin with."""

_PREFILL_BATCH_TOKENS: Final = 16_384
"""What a prefill GPU computes in one step; vLLM's own 8,192 spares decodes that it has none of."""


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; None and empty where it doesn't.

    ``vllm_args`` are the words that follow ``--``.
    """

    model: str | None = None
    config: str | None = None
    served_model_name: tuple[str, ...] = ()
    wish: Wish = Wish()
    socket: str | None = None
    listen: str | None = None
    api_key_file: str | None = None
    gateway: GatewayKind | None = None
    simulate: str | None = None
    speedup: float | None = None
    tiers: TierWish = TierWish()
    vllm_args: tuple[str, ...] = ()


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration is checked against.

    ``topology`` is asked only when real engines run, ``memory`` only where there is a host tier.
    ``simulated_gpus`` are the GPUs whose step times are known, such as ``h100-sxm``.
    """

    environ: Mapping[str, str]
    uid: int
    topology: Callable[[], Topology]
    memory: Callable[[], Memory]
    simulated_gpus: tuple[str, ...]


def load_config(flags: Flags, around: Surroundings) -> NodeConfig:
    """Return the one configuration that ``flags`` and the file they name agree on.

    Flags win over the file. Nothing is created or bound.

    Raises:
        ConfigError: Something can never work; the message has one line for each problem.
    """
    problems = Problems(flags.config or COMMAND_LINE)
    file = _read_file(flags.config, problems)
    model = _model(flags, file, around, problems)
    simulate, speedup = _simulation(flags, file, around, problems)
    extra = parse_command_line(flags.vllm_args, problems.of(COMMAND_LINE))
    engine_extra, front_end_extra = split_parts(extra)
    topology = simulated_topology(simulate) if simulate is not None else around.topology()
    if topology.gpu_problem is not None:
        problems.of("this node").add("GPUs", f"cannot be listed: {topology.gpu_problem}")
    workers = _workers(flags, file, topology, engine_extra, problems)
    if model is not None:
        shared = {**file.engine.args, **engine_extra}
        refuse_model(model, shared, problems)
    listeners = _listeners(flags, file, front_end_extra, around, problems)
    tiers = resolve_tiers(file.kv, flags.tiers, around.memory, problems)
    check_users(tiers, listeners, workers, problems)
    runtime_dir = _runtime_dir(file, listeners, around, problems)
    _check_numbers(file, problems)
    _check_names(flags, file, problems)
    accounting = resolve_accounting(file.accounting, file.health, problems)
    problems.raise_if_any()
    if model is None:
        raise ConfigError("command line: MODEL is missing; name a model directory")
    return NodeConfig(
        model=model.path,
        served_model_names=_served_names(flags, file, model),
        runtime_dir=runtime_dir,
        listeners=listeners,
        workers=workers,
        kv=KvSpec(
            async_load=file.kv.async_load,
            load_at_once_bytes=file.kv.load_at_once_bytes,
            lease_ttl_s=file.kv.lease_ttl_s,
            one_tp=len({worker.tp for worker in workers}) < 2,
            one_block_size=len({str(worker.args.get("block_size")) for worker in workers}) < 2,
            gpu_transport=file.kv.gpu_transport,
        ),
        router=RouterSettings(
            local_prefill_tokens=file.router.local_prefill_tokens,
            max_queued_requests=file.router.max_queued_requests,
            min_bandwidth_gbps=file.kv.min_bandwidth_gbps,
        ),
        drain_deadline_s=file.drain.deadline_s,
        liveness=LivenessSettings(**msgspec.structs.asdict(file.liveness)),
        simulate=simulate,
        speedup=speedup,
        tiers=tiers,
        accounting=accounting,
        warnings=tuple(problems.warnings),
    )


def _read_file(given: str | None, problems: Problems) -> FileConfig:
    if given is None:
        return FileConfig()
    try:
        data = tomllib.loads(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        text = f"{given}: cannot be read: {error.strerror}; give --config a TOML file"
        raise ConfigError(text) from error
    except UnicodeDecodeError as error:
        text = f"{given}: is not UTF-8 at byte {error.start}; save it as UTF-8"
        raise ConfigError(text) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{given}: is not TOML: {error}") from error
    return read_struct(FileConfig, data, "", problems) or FileConfig()


def _model(
    flags: Flags, file: FileConfig, around: Surroundings, problems: Problems
) -> ModelFacts | None:
    given = flags.model or file.model
    if given is None:
        problems.of(COMMAND_LINE).add("MODEL", "is missing: name a model directory")
        return None
    try:
        return find_model(given, around.environ)
    except ConfigError as error:
        problems.errors.append(str(error))
        return None


def _served_names(flags: Flags, file: FileConfig, model: ModelFacts) -> tuple[str, ...]:
    named = flags.served_model_name or file.served_model_name or default_names(model)
    return (named,) if isinstance(named, str) else tuple(named)


def _simulation(
    flags: Flags, file: FileConfig, around: Surroundings, problems: Problems
) -> tuple[str | None, float]:
    """Return the simulated system, or None, and the speed-up."""
    system = flags.simulate or (file.simulate.system if file.simulate else None)
    speedup = file.simulate.speedup if file.simulate else 1.0
    if flags.speedup is not None:
        speedup = flags.speedup
    at = problems.of(COMMAND_LINE) if flags.simulate else problems
    key = "--simulate" if flags.simulate else "simulate.system"
    if flags.speedup is not None and system is None:
        problems.of(COMMAND_LINE).add("--speedup", "is given without --simulate")
    if math.isnan(speedup) or speedup <= 0:
        flag = flags.speedup is not None
        where = problems.of(COMMAND_LINE) if flag else problems
        where.add(
            "--speedup" if flag else "simulate.speedup",
            f"is {speedup:g}: use a number above 0, or inf",
        )
    if system is None:
        return None, 1.0
    found = _SYSTEM.match(system)
    if found is None:
        at.add(key, f"is {system!r}: write a number of GPUs and their kind, such as 8xh100-sxm")
        return "1xunknown", speedup
    if found["gpu"] not in around.simulated_gpus:
        known = ", ".join(around.simulated_gpus)
        hint = nearest(found["gpu"], around.simulated_gpus)
        at.add(key, f"is {system!r}, a GPU whose step times are not known{hint}; known: {known}")
    return system, speedup


def simulated_topology(system: str) -> Topology:
    """Return the node that ``8xh100-sxm`` and the like stand for: two NUMA nodes, no CPUs."""
    found = _SYSTEM.match(system)
    if found is None:
        raise ConfigError(f"system {system!r}: write one such as 8xh100-sxm")
    count = int(found["count"])
    gpus = [
        Gpu(
            index=index,
            uuid=f"{_SIMULATED}{index}",
            name=found["gpu"],
            memory_bytes=0,
            numa_node=index * 2 // count,
        )
        for index in range(count)
    ]
    return Topology(gpus=tuple(gpus), cpus=tuple[Cpu, ...]())


def _workers(
    flags: Flags,
    file: FileConfig,
    topology: Topology,
    extra: Mapping[str, ArgValue],
    problems: Problems,
) -> tuple[Worker, ...]:
    """Return the placed workers, each with all its engine arguments."""
    check_args(file.engine.args, "engine.args", problems)
    refuse_args(file.engine.args, "engine.args", problems)
    refuse_args(extra, ON_COMMAND_LINE, problems.of(COMMAND_LINE))
    for index, table in enumerate(file.workers):
        check_args(table.args, f"workers[{index}].args", problems)
        refuse_args(table.args, f"workers[{index}].args", problems)
    if not _is_possible(flags.wish, problems.of(COMMAND_LINE)):
        return ()  # what would be placed is not what was meant
    at = problems
    tables = file.workers
    if flags.wish.says_anything and tables:
        problems.of(COMMAND_LINE).add(
            "--prefill, --decode, --aggregated, --tp-prefill and --tp-decode",
            f"say which workers run, and so does [[workers]] in {flags.config}: use one of them",
        )
    elif not tables:
        at = problems.of(COMMAND_LINE)
        wish = flags.wish
        if any(not gpu.uuid.startswith(_SIMULATED) for gpu in topology.gpus):
            # Handoffs between GPUs have not been seen on one yet: only who asks gets them.
            wish = whole_wish(wish, len(topology.gpus))
        tables = wished_tables(wish, len(topology.gpus), len(topology.cpus))
    on_gpu = bool(topology.gpus)
    workers = []
    for worker in place_workers(tables, topology, at):
        args = {
            **(role_defaults(worker.role) if on_gpu else {}),
            **file.engine.args,
            **worker.args,
            **extra,
        }
        simulated = any(uuid.startswith(_SIMULATED) for uuid in worker.gpu_uuids)
        uuids = () if simulated else worker.gpu_uuids
        workers.append(msgspec.structs.replace(worker, args=args, gpu_uuids=uuids))
    _compare_sizes(workers, problems)
    refuse_gaps(workers, topology, problems)
    return tuple(workers)


def _compare_sizes(workers: Sequence[Worker], problems: Problems) -> None:
    """Note sizes between which no worker can fetch what another one has computed."""
    handing_over = [worker for worker in workers if worker.role is not Role.AGGREGATED]
    if len({worker.role for worker in handing_over}) < 2:
        return
    for name in ("kv_cache_dtype", "dtype"):
        found = {str(worker.args.get(name, "auto")) for worker in handing_over}
        if len(found) > 1:
            problems.add(
                f"`{name}` of prefill and decode workers",
                f"is {' and '.join(sorted(found))}: KV is handed over as it is; use one",
            )
    blocks = {size for worker in handing_over if type(size := worker.args.get("block_size")) is int}
    for smaller, larger in pairwise(sorted(blocks)):
        if larger % max(1, smaller):
            problems.add(
                "`block_size` of prefill and decode workers",
                f"is {smaller} and {larger}: let one divide the other",
            )


def role_defaults(role: Role) -> dict[str, ArgValue]:
    """Return what a role changes in vLLM's own defaults on a GPU."""
    return {"max_num_batched_tokens": _PREFILL_BATCH_TOKENS} if role is Role.PREFILL else {}


def _is_possible(wish: Wish, problems: Problems) -> bool:
    before = len(problems.errors)
    for name, least in Wish.LEAST.items():
        value = getattr(wish, name)
        if value is not None and value < least:
            problems.add(f"--{name.replace('_', '-')}", f"is {value}: use {least} or more")
    return len(problems.errors) == before


def _listeners(
    flags: Flags,
    file: FileConfig,
    extra: Mapping[str, ArgValue],
    around: Surroundings,
    problems: Problems,
) -> tuple[Listener, ...]:
    refuse_args(extra, ON_COMMAND_LINE, problems.of(COMMAND_LINE))
    simulated = flags.simulate is not None or file.simulate is not None
    defaults = ListenerDefaults(
        socket=flags.socket or file.socket or str(paths.default_socket(around.environ, around.uid)),
        gateway=GatewayKind.RUST if simulated else GatewayKind.PYTHON,
        forced_gateway=flags.gateway,
        args=extra,
        environ=around.environ,
        first_socket_bytes=(
            paths.MAX_OWN_SOCKET_BYTES if file.runtime_dir is None else paths.MAX_PATH_BYTES
        ),
    )
    tables = [(f"listener[{index}]", table) for index, table in enumerate(file.listener)]
    if flags.socket is not None:
        tables = _with_socket(tables, flags.socket)
    if not tables:
        tables = [("--socket" if flags.socket else "socket", ListenerTable())]
    if flags.listen is not None:
        table = ListenerTable(name="tcp", listen=flags.listen, api_key_file=flags.api_key_file)
        tables.append(("--listen", table))
    elif flags.api_key_file is not None:
        problems.of(COMMAND_LINE).add("--api-key-file", "is given without --listen")
    return resolve_listeners(tables, defaults, problems)


def _with_socket(
    tables: list[tuple[str, ListenerTable]], socket: str
) -> list[tuple[str, ListenerTable]]:
    """Give the first Unix listener another path; where there is none, put one in front."""
    for index, (key, table) in enumerate(tables):
        if table.listen is None:
            tables[index] = (key, msgspec.structs.replace(table, socket=socket))
            return tables
    return [("--socket", ListenerTable(socket=socket)), *tables]


def _runtime_dir(
    file: FileConfig,
    listeners: tuple[Listener, ...],
    around: Surroundings,
    problems: Problems,
) -> str:
    sockets = [listener.socket for listener in listeners if listener.socket is not None]
    if file.runtime_dir is not None:
        path = Path(file.runtime_dir).expanduser().absolute()
    elif sockets:
        path = paths.internals_of(Path(sockets[0]))
    else:
        path = paths.internals_of(paths.default_socket(around.environ, around.uid).absolute())
    # A directory that follows from a socket's path has been measured with it.
    has_own_path = file.runtime_dir is not None or not sockets
    if has_own_path and (problem := paths.runtime_dir_problem(path)):
        problems.add("runtime_dir", problem)
    return str(path)


def _check_numbers(file: FileConfig, problems: Problems) -> None:
    for key, value, least in (
        ("kv.lease_ttl_s", file.kv.lease_ttl_s, 1.0),
        ("kv.load_at_once_bytes", file.kv.load_at_once_bytes, 0),
        ("kv.min_bandwidth_gbps", file.kv.min_bandwidth_gbps or 0.0, 0.0),
        ("router.local_prefill_tokens", file.router.local_prefill_tokens, 0),
        ("router.max_queued_requests", file.router.max_queued_requests, 1),
        ("drain.deadline_s", file.drain.deadline_s, 0.0),
        ("liveness.stopped_s", file.liveness.stopped_s, 0.0),
        ("liveness.silent_s", file.liveness.silent_s, 0.5),
        ("liveness.step_s", file.liveness.step_s, 1.0),
        ("liveness.first_step_s", file.liveness.first_step_s, 1.0),
    ):
        if not math.isfinite(value) or value < least:
            problems.add(key, f"is {value}: use {least:g} or more")
    if file.kv.gpu_transport not in GPU_TRANSPORTS:
        known = " or ".join(GPU_TRANSPORTS)
        problems.add("kv.gpu_transport", f"is {file.kv.gpu_transport!r}: use {known}")


def _check_names(flags: Flags, file: FileConfig, problems: Problems) -> None:
    in_file = file.served_model_name
    if in_file is not None and not all(
        [in_file] if isinstance(in_file, str) else [*in_file, in_file]
    ):
        problems.add("served_model_name", "is empty: drop it, or give a name")
    if not all(flags.served_model_name):
        problems.of(COMMAND_LINE).add("--served-model-name", "is empty: drop it, or give a name")
