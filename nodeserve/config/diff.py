"""What it takes to go from one configuration to another while the node serves."""

from collections.abc import Iterable
from typing import Final

import msgspec

from nodeserve.config.load import role_defaults
from nodeserve.config.node import AccountingSettings, Listener, NodeConfig, Worker
from nodeserve.errors import ConfigError
from nodeserve.wire.kinds import Role

RESTART: Final = "restart the daemon for it"

_IN_EVERY_PROCESS: Final = ("model", "served_model_names", "runtime_dir", "simulate")
_OF_EVERY_WORKER: Final = ("kv", "speedup")
_LIVE: Final = ("router", "drain_deadline_s", "liveness")
_OF_THE_GATEWAY: Final = ("gateway", "gateways", "api_key_file", "args", "tenant")
_OF_ENGINES_ALONE: Final = frozenset(
    {
        *("async_scheduling", "block_size", "compilation_config", "enable_chunked_prefill"),
        *("enable_prefix_caching", "enforce_eager", "gpu_memory_utilization"),
        *("kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs"),
        *("num_gpu_blocks_override", "scheduling_policy"),
    }
)
"""Engine arguments that no front end looks at; from the others it has its limits."""

_STARTED: Final = "started"
_ENDED: Final = "ended"
RESTARTED: Final = "restarted"

_IN_FILE: Final = {
    "served_model_names": "served_model_name",
    "drain_deadline_s": "drain.deadline_s",
}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The steps from one configuration to the next; all empty where they are equal.

    Attributes:
        live: Settings that processes are told, or that are asked for when they are needed.
        added, removed, restarted: Workers by name.
        roles: Workers that are used for something else, without being initialised again.
        listeners_added, listeners_removed, listeners_restarted: Listeners by name; those that
            restart keep their socket.
        block_manager: What becomes of it, ``started``, ``ended`` or ``restarted``; None where it
            goes on or there is none. Who uses the tiers begins or ends to with its own restart.
        additions_wait: Whether a worker that is added needs what one that is removed has.
    """

    live: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    roles: dict[str, Role] = {}
    listeners_added: tuple[str, ...] = ()
    listeners_removed: tuple[str, ...] = ()
    listeners_restarted: tuple[str, ...] = ()
    block_manager: str | None = None
    additions_wait: bool = False

    def lines(self) -> list[str]:
        """Return the steps for people, in the order in which they are taken."""
        said = [f"at once: {what}" for what in self.live]
        said += [f"worker {name}: used for {role} from now on" for name, role in self.roles.items()]
        if self.block_manager is not None:
            said.append(f"block manager: {self.block_manager}")
        said += [f"listener {name}: opened, with its own gateway" for name in self.listeners_added]
        said += [f"worker {name}: drained, then ended" for name in self.removed]
        said += [f"worker {name}: started" for name in self.added]
        said += [f"worker {name}: drained and restarted, one by one" for name in self.restarted]
        said += [
            f"listener {name}: its gateway restarts, its socket stays open"
            for name in self.listeners_restarted
        ]
        said += [f"listener {name}: closed" for name in self.listeners_removed]
        return said


def compare(old: NodeConfig, new: NodeConfig) -> tuple[NodeConfig, Change]:
    """Return ``new`` with the names that its workers have already, and the steps to it.

    A worker that has the same place and arguments stays what it is, though its name may come
    from a role that it had before.

    Raises:
        ConfigError: A setting cannot change while the node serves; one line for each.
    """
    refused = [_refusal(key, getattr(old, key), getattr(new, key)) for key in _IN_EVERY_PROCESS]
    refused += _accounting(old.accounting, new.accounting)
    for before, after in _of_both(old.listeners, new.listeners):
        key = f"listener {after.name}: "
        refused.append(_refusal(f"{key}address", before.address, after.address))
        refused.append(_refusal(f"{key}mode", f"{before.mode:04o}", f"{after.mode:04o}"))
        refused.append(_refusal(f"{key}group", before.group, after.group))
    if lines := list(filter(None, refused)):
        raise ConfigError("\n".join(lines))
    new = msgspec.structs.replace(new, workers=_named(old.workers, new.workers))
    return new, _change(old, new)


def _accounting(old: AccountingSettings | None, new: AccountingSettings | None) -> list[str | None]:
    """Refuse to book in another way, or to begin or end to."""
    if old is None or new is None:
        return [_refusal("accounting.enabled", old is not None, new is not None)]
    before, after = msgspec.structs.asdict(old), msgspec.structs.asdict(new)
    return [_refusal(f"accounting.{key}", value, after[key]) for key, value in before.items()]


def _change(old: NodeConfig, new: NodeConfig) -> Change:
    before = {worker.name: worker for worker in old.workers}
    after = {worker.name: worker for worker in new.workers}
    stay = [name for name in after if name in before]
    removed = tuple(name for name in before if name not in after)
    added = tuple(name for name in after if name not in before)
    manager = _block_manager(old, new)
    all_anew = manager in (_STARTED, _ENDED) or any(
        getattr(old, key) != getattr(new, key) for key in _OF_EVERY_WORKER
    )
    freed = {place for name in removed for place in _place(before[name])}
    same = {listener.name for listener in old.listeners}
    wanted = {listener.name for listener in new.listeners}
    other_limits = any(_limits(before[name]) != _limits(after[name]) for name in stay)
    return Change(
        live=tuple(line for key in _LIVE for line in _differences(old, new, key)),
        added=added,
        removed=removed,
        restarted=tuple(
            name for name in stay if all_anew or _engine(before[name]) != _engine(after[name])
        ),
        roles={n: after[n].role for n in stay if before[n].role is not after[n].role},
        listeners_added=tuple(x.name for x in new.listeners if x.name not in same),
        listeners_removed=tuple(x.name for x in old.listeners if x.name not in wanted),
        listeners_restarted=tuple(
            b.name
            for a, b in _of_both(old.listeners, new.listeners)
            if other_limits or any(getattr(a, part) != getattr(b, part) for part in _OF_THE_GATEWAY)
        ),
        block_manager=manager,
        additions_wait=any(place in freed for name in added for place in _place(after[name])),
    )


def _block_manager(old: NodeConfig, new: NodeConfig) -> str | None:
    """Return what becomes of the block manager; its memory outlives a restart, unless resized."""
    if old.tiers is None or new.tiers is None:
        return None if old.tiers is new.tiers else _STARTED if old.tiers is None else _ENDED
    same = old.tiers == new.tiers and old.kv_quotas == new.kv_quotas
    return None if same else RESTARTED


def _named(old: Iterable[Worker], new: Iterable[Worker]) -> tuple[Worker, ...]:
    """Return the new workers, each with the name that it has already or one that is free."""
    wanted = list(new)
    left = {worker.name: worker for worker in old}
    names: dict[str, str] = {}
    for is_the_same in (_same_in_all, _same_but_name, _same_engine, _same_name):
        for worker in wanted:
            found = next((one for one in left.values() if is_the_same(one, worker)), None)
            if worker.name not in names and found is not None:
                names[worker.name] = left.pop(found.name).name
    taken = set(names.values())
    for worker in wanted:
        if worker.name not in names:
            free = (f"{worker.role}-{number}" for number in range(len(wanted) + len(taken)))
            names[worker.name] = next(name for name in free if name not in taken)
            taken.add(names[worker.name])
    return tuple(msgspec.structs.replace(one, name=names[one.name]) for one in wanted)


def _same_in_all(one: Worker, other: Worker) -> bool:
    return one == other


def _same_but_name(one: Worker, other: Worker) -> bool:
    return one.role is other.role and _same_engine(one, other)


def _same_engine(one: Worker, other: Worker) -> bool:
    return _engine(one) == _engine(other)


def _same_name(one: Worker, other: Worker) -> bool:
    return one.name == other.name


def _engine(worker: Worker) -> Worker:
    """Return what a worker's process was started with, but for its name and role.

    What its role sets by default does not count: `nodeserve role` does not change it either.
    """
    defaults = role_defaults(worker.role)
    args = {name: value for name, value in worker.args.items() if defaults.get(name) != value}
    return msgspec.structs.replace(worker, name="", role=Role.AGGREGATED, args=args)


def _limits(worker: Worker) -> dict[str, object]:
    """Return the engine arguments that front ends have their limits and defaults from."""
    args = _engine(worker).args
    return {name: value for name, value in args.items() if name not in _OF_ENGINES_ALONE}


def _place(worker: Worker) -> list[str]:
    return [*worker.gpu_uuids, *(f"cpu {number}" for number in worker.cpus)]


def _of_both(old: Iterable[Listener], new: Iterable[Listener]) -> list[tuple[Listener, Listener]]:
    before = {listener.name: listener for listener in old}
    return [(before[one.name], one) for one in new if one.name in before]


def _refusal(key: str, before: object, after: object) -> str | None:
    if before == after:
        return None
    return f"{_IN_FILE.get(key, key)} is {_shown(before)} and would be {_shown(after)}: {RESTART}"


def _differences(old: NodeConfig, new: NodeConfig, key: str) -> list[str]:
    before, after = getattr(old, key), getattr(new, key)
    if not isinstance(before, msgspec.Struct):
        pairs = [(_IN_FILE.get(key, key), before, after)]
    else:
        pairs = [
            (f"{key}.{part}", getattr(before, part), getattr(after, part))
            for part in before.__struct_fields__
        ]
    return [f"{name} {_shown(a)} -> {_shown(b)}" for name, a, b in pairs if a != b]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return "none" if value is None else f"{value}"
