"""How much memory this process can have: the machine's, or what its control groups leave of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeserve.config.facts import Memory

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def read_memory(*, proc_root: Path = _PROC, cgroup_root: Path = _CGROUPS) -> Memory:
    """Return the machine's memory, cut down to the tightest limit of our control groups (v2).

    Zeros where ``/proc`` does not say.
    """
    found = _meminfo(proc_root / "meminfo")
    total_bytes, available_bytes = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    for directory in _groups(proc_root / "self/cgroup", cgroup_root):
        limit_bytes = _number(directory / "memory.max")
        if limit_bytes is not None:
            total_bytes = min(total_bytes, limit_bytes)
            used_bytes = _number(directory / "memory.current") or 0
            available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return Memory(total_bytes=total_bytes, available_bytes=available_bytes)


def read_huge_pages(*, sys_root: Path = Path("/sys")) -> tuple[int, int]:
    """Return how many 2 MiB pages are set aside, and how many of them are free."""
    directory = sys_root / "kernel/mm/hugepages/hugepages-2048kB"
    return _number(directory / "nr_hugepages") or 0, _number(directory / "free_hugepages") or 0


def _meminfo(path: Path) -> dict[str, int]:
    """Return the rows of ``/proc/meminfo`` in bytes."""
    found = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            found[name] = int(number[0]) << 10
    return found


def _groups(listing: Path, root: Path) -> Iterator[Path]:
    """Yield the directories of our control group and of those above it."""
    for line in _text(listing).splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0":
            directory = root / path.lstrip("/")
            while directory != root and root in directory.parents:
                yield directory
                directory = directory.parent
            yield root


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no file, or it says ``max``."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
