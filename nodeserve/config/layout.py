"""Decide which workers run, and on which GPUs or CPUs."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import msgspec

from nodeserve.config.facts import Cpu, Gpu, Topology
from nodeserve.config.node import Worker
from nodeserve.config.problems import Problems
from nodeserve.config.schema import WorkersTable
from nodeserve.wire.kinds import Role

_CPUS_PER_SPARE: Final = 8
"""One CPU in so many stays free for gateways and the dispatcher, when workers are not told."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers of each role the command line asks for; None where it doesn't say."""

    prefill: int | None = None
    decode: int | None = None
    aggregated: int | None = None
    tp_prefill: int | None = None
    tp_decode: int | None = None

    LEAST: ClassVar[Mapping[str, int]] = {
        "prefill": 0,
        "decode": 0,
        "aggregated": 0,
        "tp_prefill": 1,
        "tp_decode": 1,
    }
    """The smallest number that each can be."""

    @property
    def says_anything(self) -> bool:
        """Whether any flag was given."""
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


def whole_wish(wish: Wish, num_gpus: int) -> Wish:
    """Return ``wish``, or where it gives no count, every GPU for workers that do both."""
    if not wish.prefill is wish.decode is wish.aggregated is None:
        return wish
    count = max(1, num_gpus // max(1, wish.tp_decode or 1))
    return msgspec.structs.replace(wish, aggregated=count)


def wished_tables(wish: Wish, num_gpus: int, num_cpus: int) -> tuple[WorkersTable, ...]:
    """Return the workers that the flags, or the machine alone, ask for.

    For workers that can hand KV over; ``whole_wish`` is for those that cannot. With no count
    given, half of the GPUs prefill and half decode; one GPU does both. Without
    GPUs, two CPUs or more give one worker of each, and one CPU a worker that does both. As
    soon as one count is given, roles without one have none.
    """
    tp_prefill, tp_decode = wish.tp_prefill or 1, wish.tp_decode or 1
    if wish.prefill is wish.decode is wish.aggregated is None:
        prefill = num_gpus // 2 // tp_prefill if num_gpus else num_cpus // 2
        decode = (num_gpus - num_gpus // 2) // tp_decode if num_gpus else num_cpus // 2
        if prefill and decode:
            most = None if num_gpus else 1
            counts = (min(prefill, most or prefill), min(decode, most or decode), 0)
        else:
            counts = (0, 0, 1)
    else:
        counts = (wish.prefill or 0, wish.decode or 0, wish.aggregated or 0)
    rows = zip(
        (Role.PREFILL, Role.DECODE, Role.AGGREGATED),
        counts,
        (tp_prefill, tp_decode, tp_decode),
        strict=True,
    )
    return tuple(WorkersTable(role=role, count=n, tp=tp) for role, n, tp in rows if n != 0)


def place_workers(
    tables: Sequence[WorkersTable], topology: Topology, problems: Problems
) -> tuple[Worker, ...]:
    """Return every worker with its name and its GPUs or CPUs; what cannot be is noted.

    Workers are named by role in the order of the file: ``prefill-0``, ``decode-0``. Their
    arguments are those of their own table. GPUs that a table names are taken in its order;
    for the others whole TP groups are taken within one NUMA node while that is possible.
    """
    wanted = [_counted(table, index, problems) for index, table in enumerate(tables)]
    _check_roles(wanted, problems)
    if topology.gpus:
        gpus = _place_gpus(wanted, topology.gpus, problems)
        cpus = _named_cpus(wanted, topology.cpus, problems)
    else:
        gpus = _no_gpus(wanted, problems)
        cpus = _place_cpus(wanted, topology.cpus, problems)
    workers = []
    seen: dict[Role, int] = {}
    for index, (table, count) in enumerate(wanted):
        role = table.role or Role.AGGREGATED
        for number in range(count):
            ordinal = seen.get(role, 0)
            seen[role] = ordinal + 1
            workers.append(
                Worker(
                    name=f"{role}-{ordinal}",
                    role=role,
                    tp=table.tp,
                    gpu_uuids=gpus.get((index, number), ()),
                    cpus=cpus.get((index, number), ()),
                    args=table.args,
                )
            )
    return tuple(workers)


_Wanted = Sequence[tuple[WorkersTable, int]]
_Place = tuple[int, int]
"""A worker: the index of its table, and its number within it."""


def _counted(table: WorkersTable, index: int, problems: Problems) -> tuple[WorkersTable, int]:
    """Return a table with the number of its workers; 0 where that cannot be known."""
    key = f"workers[{index}]"
    if table.role is None:
        if not problems.has(f"{key}.role"):
            problems.add(f"{key}.role", "is missing: prefill, decode or aggregated")
        return table, 0
    if table.tp < 1:
        problems.add(f"{key}.tp", f"is {table.tp}, a worker needs at least 1 GPU")
        return table, 0
    if table.count is not None and table.count < 1:
        problems.add(f"{key}.count", f"is {table.count}, at least 1 is needed; or drop the table")
        return table, 0
    if table.gpus is None:
        return table, 1 if table.count is None else table.count
    count = len(table.gpus) // table.tp if table.count is None else table.count
    if count * table.tp != len(table.gpus) or count == 0:
        problems.add(
            f"{key}.gpus",
            f"names {len(table.gpus)} GPUs, but {max(count, 1)} workers with tp = {table.tp} "
            f"need {max(count, 1) * table.tp}",
        )
        return table, 0
    return table, count


def _check_roles(wanted: _Wanted, problems: Problems) -> None:
    """Refuse a node that could compute prompts and never an answer."""
    roles = {table.role for table, _ in wanted}
    if None in roles:
        return
    if roles == {Role.PREFILL}:
        problems.add(
            "workers",
            "are all prefill: nobody would generate; add a decode or aggregated worker",
        )
    if not roles:
        problems.add("workers", "are none: ask for at least one")


def _no_gpus(wanted: _Wanted, problems: Problems) -> dict[_Place, tuple[str, ...]]:
    for index, (table, _) in enumerate(wanted):
        if table.gpus is not None:
            problems.add(f"workers[{index}].gpus", "is set, but this node has no GPU")
    return {}


def _place_gpus(
    wanted: _Wanted, gpus: Sequence[Gpu], problems: Problems
) -> dict[_Place, tuple[str, ...]]:
    """Give each worker its TP group: first where the file says which, then from what is left."""
    places: dict[_Place, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    for index, (table, count) in enumerate(wanted):
        if table.gpus is None:
            continue
        uuids = _named_gpus(table.gpus, f"workers[{index}].gpus", gpus, taken, problems)
        if len(uuids) == count * table.tp:
            for number in range(count):
                places[index, number] = uuids[number * table.tp : (number + 1) * table.tp]
    free = [gpu for gpu in gpus if gpu.uuid not in taken]
    needed = sum(table.tp * count for table, count in wanted if table.gpus is None)
    if needed > len(free):
        have = f"{len(gpus)} GPUs" if len(gpus) != 1 else "1 GPU"
        named = f", {len(taken)} of them named by other workers" if taken else ""
        problems.add("workers", f"need {needed} GPUs, this node has {have}{named}: ask for fewer")
        return places
    for index, (table, count) in enumerate(wanted):
        for number in range(count if table.gpus is None else 0):
            group = _nearest_group(free, table.tp)
            free = [gpu for gpu in free if gpu not in group]
            places[index, number] = tuple(gpu.uuid for gpu in group)
    return places


def _named_gpus(
    names: Sequence[int | str],
    key: str,
    gpus: Sequence[Gpu],
    taken: dict[str, str],
    problems: Problems,
) -> tuple[str, ...]:
    """Return the UUIDs of the GPUs named by index or UUID, and note them as ``taken``."""
    known: dict[int | str, Gpu] = {
        **{gpu.index: gpu for gpu in gpus},
        **{gpu.uuid: gpu for gpu in gpus},
    }
    found = []
    for position, name in enumerate(names):
        here = f"{key}[{position}]"
        gpu = known.get(name)
        if gpu is None:
            last = max(gpu.index for gpu in gpus)
            have = f"GPUs 0 to {last}" if last else "only GPU 0"
            problems.add(here, f"is {name}, this node has {have}")
        elif gpu.uuid in taken:
            problems.add(here, f"is {name}, which {taken[gpu.uuid]} has already")
        else:
            taken[gpu.uuid] = here
            found.append(gpu.uuid)
    return tuple(found)


def _nearest_group(free: Sequence[Gpu], size: int) -> list[Gpu]:
    """Return ``size`` free GPUs, of one NUMA node if one has enough, the fullest first."""
    nodes: dict[int | None, list[Gpu]] = {}
    for gpu in free:
        nodes.setdefault(gpu.numa_node, []).append(gpu)
    fitting = [node for node in nodes.values() if len(node) >= size]
    if not fitting:
        return list(free[:size])
    return min(fitting, key=lambda node: (len(node), node[0].index))[:size]


def _named_cpus(
    wanted: _Wanted, cpus: Sequence[Cpu], problems: Problems
) -> dict[_Place, tuple[int, ...]]:
    """Return the CPUs of the workers whose tables name some, split among their workers."""
    places: dict[_Place, tuple[int, ...]] = {}
    allowed = {cpu.index for cpu in cpus}
    taken: dict[int, str] = {}
    for index, (table, count) in enumerate(wanted):
        if table.cpus is None:
            continue
        key = f"workers[{index}].cpus"
        for position, cpu in enumerate(table.cpus):
            here = f"{key}[{position}]"
            if cpu not in allowed:
                problems.add(here, f"is {cpu}, this process may run on CPUs {_ranges(allowed)}")
            elif cpu in taken:
                problems.warn(f"{here} is {cpu}, which {taken[cpu]} has too: they share it")
            taken[cpu] = here
        if len(table.cpus) < count:
            problems.add(key, f"names {len(table.cpus)} CPUs for {count} workers: one each needed")
            continue
        for number, share in enumerate(_split(table.cpus, count)):
            places[index, number] = share
    return places


def _place_cpus(
    wanted: _Wanted, cpus: Sequence[Cpu], problems: Problems
) -> dict[_Place, tuple[int, ...]]:
    """Give each worker CPUs of its own, neighbours together; share only when there are too few."""
    places = _named_cpus(wanted, cpus, problems)
    taken = {cpu for share in places.values() for cpu in share}
    near = sorted(cpus, key=lambda cpu: (cpu.numa_node, cpu.core, cpu.index))
    free = [cpu.index for cpu in near if cpu.index not in taken]
    left = [
        (index, number)
        for index, (table, count) in enumerate(wanted)
        for number in range(count if table.cpus is None else 0)
    ]
    if not left:
        return places
    spare = min(len(cpus) // _CPUS_PER_SPARE, max(len(free) - len(left), 0))
    free = free[: len(free) - spare]
    if len(left) <= len(free):
        shares = _split(free, len(left))
    else:
        pool = free or [cpu.index for cpu in near]
        shares = [(pool[number % len(pool)],) if pool else () for number in range(len(left))]
        problems.warn(
            f"{len(left)} workers share {len(pool)} CPUs: they slow each other down; "
            "ask for fewer workers"
        )
    return {**places, **dict(zip(left, shares, strict=True))}


def _split(items: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Split into runs of neighbours whose lengths differ by one at most, longer ones first."""
    base, extra = divmod(len(items), parts)
    shares, start = [], 0
    for part in range(parts):
        end = start + base + (part < extra)
        shares.append(tuple(items[start:end]))
        start = end
    return shares


def _ranges(numbers: set[int]) -> str:
    """Write numbers as Linux does: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
