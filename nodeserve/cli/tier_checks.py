"""What `nodeserve doctor` looks at for the KV tiers below the GPUs."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nodeserve.cli.checks import Check, Verdict
from nodeserve.cli.status import size
from nodeserve.config.facts import Memory, Topology
from nodeserve.config.tiers import directory_or_parent

_SHARE: Final = 0.5
"""Of the free memory: what a host tier may take beside engines that are still to load."""

_WORTH_BYTES: Final = 8 << 30
"""Less than that holds few prompts of a large model."""

_PAGE_BYTES: Final = 2 << 20


def check_tier_memory(memory: Memory, huge_pages: tuple[int, int], topology: Topology) -> Check:
    """Return how large a host tier could be, and of which pages.

    ``huge_pages`` are those of 2 MiB that are set aside, and free ones among them.
    """
    room_bytes = int(memory.available_bytes * _SHARE)
    number, free = huge_pages
    pages = f"{free} of {number} huge pages free" if number else "no huge pages set aside"
    found = f"{size(memory.available_bytes)} of {size(memory.total_bytes)} free, {pages}"
    if not topology.gpus:
        return Check(name="host tier", verdict=Verdict.OK, found=found)
    if room_bytes < _WORTH_BYTES:
        advice = "free some memory before a host tier is set up; see [kv.host]"
        return Check(name="host tier", verdict=Verdict.WARN, found=found, advice=advice)
    advice = f"`--kv-host {room_bytes >> 30}GiB` keeps KV of prompts that come again"
    if number and free * _PAGE_BYTES < room_bytes:
        advice += f"; {room_bytes // _PAGE_BYTES} huge pages would hold it (vm.nr_hugepages)"
    return Check(name="host tier", verdict=Verdict.OK, found=found, advice=advice)


def check_memory_nodes(nodes: Sequence[int], topology: Topology) -> Check:
    """Return over which NUMA nodes a host tier is spread, and where the GPUs are."""
    where = {gpu.numa_node for gpu in topology.gpus} - {None}
    found = f"memory on {len(nodes) or 1}, GPUs on {len(where)}" if where else f"{len(nodes) or 1}"
    if where <= set(nodes) or not nodes:
        return Check(name="numa nodes", verdict=Verdict.OK, found=found)
    advice = "GPUs reach the host tier through another node; see the BIOS and the container"
    return Check(name="numa nodes", verdict=Verdict.WARN, found=found, advice=advice)


def check_tier_directories(directories: Sequence[Path]) -> Iterator[Check]:
    """Yield for each directory of a disk tier whether it can be used past the page cache."""
    for directory in directories:
        name = f"disk tier {directory}"
        try:
            there = directory_or_parent(directory)
            direct = takes_direct_writes(there)
            room = os.statvfs(there)
        except OSError as error:
            why = error.strerror or "cannot be used"
            advice = "make it, on a disk of its own, for the user that nodeserve runs as"
            yield Check(name=name, verdict=Verdict.FAIL, found=why, advice=advice)
            continue
        to_make = "will be made, " if there != directory else ""
        found = f"{to_make}{size(room.f_bavail * room.f_frsize)} free"
        if direct:
            yield Check(name=name, verdict=Verdict.OK, found=f"{found}, O_DIRECT")
        else:
            advice = "what is read from it also fills the page cache; use ext4 or xfs on an NVMe"
            found += ", no O_DIRECT"
            yield Check(name=name, verdict=Verdict.WARN, found=found, advice=advice)


def takes_direct_writes(directory: Path) -> bool:
    """Try a file of the directory with O_DIRECT; leave none behind.

    Raises:
        OSError: No file can be made there at all.
    """
    path = directory / f".nodeserve-doctor-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.close(fd)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        os.close(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    else:
        return True
    finally:
        path.unlink()
