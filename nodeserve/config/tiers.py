"""Resolve the KV tiers below the GPUs: how large, where, and whose."""

import errno
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config.facts import Memory
from nodeserve.config.node import Listener, TierSettings, Worker
from nodeserve.config.problems import COMMAND_LINE, Problems
from nodeserve.config.schema import KvDiskTable, KvHostTable, KvTable
from nodeserve.wire.spawn import PREFIX_HASH_ALGO, DiskTierSpec

LEAST_HOST_BYTES: Final = 16 << 20
LEAST_DISK_BYTES: Final = 64 << 20

_MOST_OF_MEMORY: Final = 0.95
"""What a host tier may take of the memory; engines, gateways and the page cache need some too."""

_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>|[KMGT]iB|%)$")
_GIB: Final = 1 << 30


class TierWish(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--kv-host SIZE`` and ``--kv-disk DIR[,DIR]:SIZE`` say; None where they don't."""

    host: str | None = None
    disk: str | None = None


def resolve_tiers(
    table: KvTable, wish: TierWish, memory: Callable[[], Memory], problems: Problems
) -> TierSettings | None:
    """Return the tiers that file and flags ask for; None where there are none.

    ``memory`` is asked only when there is a host tier. Flags win over the file.
    """
    host, disk = _Given(table.host, "kv.host", problems), _Given(table.disk, "kv.disk", problems)
    if wish.host is not None:
        host = _Given(KvHostTable(size=wish.host), "--kv-host", problems.of(COMMAND_LINE))
    if wish.disk is not None:
        directories, _, size = wish.disk.rpartition(":")
        named = tuple(name for name in directories.split(",") if name)
        at = problems.of(COMMAND_LINE)
        disk = _Given(KvDiskTable(directories=named, size=size), "--kv-disk", at)
    if not isinstance(host.table, KvHostTable):
        for key, given in (("kv.log", table.log), (disk.key, disk.table)):
            if given is not None:
                at = disk.problems if key == disk.key else problems
                at.add(key, "is set, but there is no host tier: set `kv.host.size` or `--kv-host`")
        return None
    return TierSettings(
        host_bytes=_host_bytes(host.table, host, memory()),
        disk=_disk(disk.table, disk) if isinstance(disk.table, KvDiskTable) else None,
        log_path=_log_path(table.log, problems),
    )


def check_users(
    tiers: TierSettings | None,
    listeners: Sequence[Listener],
    workers: Sequence[Worker],
    problems: Problems,
) -> None:
    """Note the listeners and workers that cannot use the tiers as they are set up."""
    shares = [one for one in listeners if one.kv_host_share is not None]
    for listener in shares:
        share = listener.kv_host_share or 0.0
        key = f"listener {listener.name}: kv_host_share"
        if not (math.isfinite(share) and 0 < share <= 1):
            problems.add(key, f"is {share:g}: use a number above 0 and at most 1, or leave it out")
        elif tiers is None:
            problems.add(key, "is set, but there is no host tier: set `kv.host.size`")
    total = sum(one.kv_host_share or 0.0 for one in shares)
    if tiers is not None and len(shares) == len(listeners) and total < 1:
        problems.warn(
            f"the kv_host_share of all listeners is {total:g} together: nobody can fill the rest "
            "of the host tier; give one of them none"
        )
    for worker in workers if tiers is not None else ():
        key = f"worker {worker.name}: prefix_caching_hash_algo"
        algo = worker.args.get("prefix_caching_hash_algo", PREFIX_HASH_ALGO)
        if algo != PREFIX_HASH_ALGO:
            text = f"is {algo!r}: blocks of the host tier are found by {PREFIX_HASH_ALGO}; drop it"
            problems.add(key, text)
        if worker.args.get("enable_prefix_caching") is False:
            text = "is false: the host tier is a prefix cache; drop it, or `kv.host`"
            problems.add(f"worker {worker.name}: enable_prefix_caching", text)


class _Given:
    """A table with the key and the source that messages call it by."""

    def __init__(
        self, table: KvHostTable | KvDiskTable | None, key: str, problems: Problems
    ) -> None:
        self.table, self.key, self.problems = table, key, problems

    def key_of(self, setting: str) -> str:
        return self.key if self.key.startswith("--") else f"{self.key}.{setting}"


def _host_bytes(table: KvHostTable, given: _Given, memory: Memory) -> int:
    key = given.key_of("size")
    num_bytes = _parsed(table.size, key, given.problems, whole_bytes=memory.total_bytes)
    if num_bytes is None:
        return LEAST_HOST_BYTES
    if num_bytes < LEAST_HOST_BYTES:
        text = f"is {_shown(num_bytes)}: use {_shown(LEAST_HOST_BYTES)} or more, or drop it"
        given.problems.add(key, text)
    most_bytes = int(memory.total_bytes * _MOST_OF_MEMORY)
    if num_bytes > most_bytes > 0:
        text = (
            f"is {_shown(num_bytes)}, this machine gives us {_shown(memory.total_bytes)} of "
            f"memory: use at most {_shown(most_bytes)}"
        )
        given.problems.add(key, text)
    elif num_bytes > memory.available_bytes > 0:
        given.problems.warn(
            f"{key} is {_shown(num_bytes)}, {_shown(memory.available_bytes)} of memory are free "
            "at present, the tier's own of a node that runs aside: when it fills up, the kernel "
            "may kill processes"
        )
    return num_bytes


def _disk(table: KvDiskTable, given: _Given) -> DiskTierSpec:
    key = given.key_of("size")
    num_bytes = _parsed(table.size, key, given.problems, whole_bytes=None)
    if num_bytes is not None and num_bytes < LEAST_DISK_BYTES:
        text = f"is {_shown(num_bytes)}: use {_shown(LEAST_DISK_BYTES)} or more, or drop [kv.disk]"
        given.problems.add(key, text)
    num_bytes = num_bytes or LEAST_DISK_BYTES
    paths = [Path(name).expanduser().absolute() for name in table.directories]
    at = given.key_of("directories")
    if not paths:
        given.problems.add(at, "name no directory: give at least one, such as /var/lib/nodeserve")
    share_bytes = num_bytes // max(1, len(paths))
    seen: dict[tuple[int, int, str], Path] = {}
    devices: dict[int, Path] = {}
    for path in paths:
        there = _usable(path, at, given.problems)
        if there is None:
            continue
        found, to_make = there.stat(), "" if there == path else path.name
        first = seen.setdefault((found.st_dev, found.st_ino, to_make), path)
        other = devices.setdefault(found.st_dev, path)
        if first is not path:
            given.problems.add(at, f"name {path}, which is {first} again: name each once")
        elif other is not path:
            same = f"{path} and {other} are on one file system"
            given.problems.warn(f"{same}: striping over them gains nothing")
        held_bytes = 0 if to_make else _held_bytes(path)
        _check_room(there, share_bytes, held_bytes, at, given.problems)
    return DiskTierSpec(directories=tuple(map(str, paths)), max_bytes=num_bytes)


def directory_or_parent(path: Path) -> Path:
    """Return a disk tier's directory, or its parent where the directory will be made in it.

    Raises:
        OSError: It is not there, and neither is a parent that belongs to us.
    """
    if not os.path.lexists(path):
        parent = path.parent
        if parent.stat().st_uid == os.getuid():
            return parent
        text = f"it is not there and {parent} is not ours"
        raise FileNotFoundError(errno.ENOENT, text)
    path.stat()
    return path


def _usable(path: Path, key: str, problems: Problems) -> Path | None:
    """Return the directory that is there, as ``directory_or_parent`` does."""
    try:
        there = directory_or_parent(path)
    except OSError as error:
        why = error.strerror or "it cannot be read"
        problems.add(key, f"name {path}, which cannot be used: {why}; make it, mode 0700")
        return None
    if not there.is_dir():
        problems.add(key, f"name {there}, which is a file: name a directory")
        return None
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        text = f"name {there}, in which uid {os.getuid()} may not write; change its permissions"
        problems.add(key, text)
        return None
    return there


def _check_room(
    path: Path, share_bytes: int, held_bytes: int, key: str, problems: Problems
) -> None:
    """Refuse a file system that has less room than the tier may take of it."""
    there = os.statvfs(path)
    room_bytes = there.f_bavail * there.f_frsize + held_bytes
    if share_bytes > room_bytes:
        text = (
            f"name {path}, which has room for {_shown(room_bytes)}: the tier takes "
            f"{_shown(share_bytes)} of it; make room or lower its size"
        )
        problems.add(key, text)


def _held_bytes(path: Path) -> int:
    """Return what lies in a directory already: what the tier has left there is its own room."""
    with os.scandir(path) as entries:
        return sum(e.stat(follow_symlinks=False).st_blocks * 512 for e in entries if e.is_file())


def _log_path(given: str | None, problems: Problems) -> str | None:
    if given is None:
        return None
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        problems.add("kv.log", f"is {path}, a directory: name a file")
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problems.add("kv.log", f"is {path}, which uid {os.getuid()} may not write")
    return str(path)


def _parsed(
    size: int | str, key: str, problems: Problems, *, whole_bytes: int | None
) -> int | None:
    """Return a size in bytes; None where it is none. ``whole_bytes`` is what % is of."""
    if isinstance(size, int):
        if size > 0:
            return size
        problems.add(key, f"is {size}: give a number of bytes above 0")
        return None
    num_bytes = size_in_bytes(size, whole_bytes)
    if num_bytes is None:
        percent = "" if whole_bytes is None else ', "50%"'
        problems.add(key, f'is {size!r}: write bytes, or a size such as "64GiB"{percent}')
    return num_bytes


def size_in_bytes(text: str, whole_bytes: int | None = None) -> int | None:
    """Return what ``64GiB``, ``50%`` of ``whole_bytes`` or a bare number means; None for none."""
    found = _SIZE.match(text.strip())
    if found is None or (found["unit"] == "%" and whole_bytes is None):
        return None
    number = float(found["number"])
    if found["unit"] == "%":
        return int((whole_bytes or 0) * number / 100)
    return int(number * _UNITS[found["unit"]])


def _shown(num_bytes: int) -> str:
    if num_bytes < _GIB:
        return f"{num_bytes / (1 << 20):.0f} MiB"
    return f"{num_bytes / _GIB:.1f} GiB"
