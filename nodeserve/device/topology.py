"""Find the node's GPUs and CPUs without initialising CUDA.

NVML runs in a child process with a deadline: a hung driver hangs whoever calls it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.config.facts import Cpu, Gpu, Topology

NVML_DEADLINE_S: Final = 20.0
"""A GPU that sleeps without persistence mode takes seconds to answer; eight take more."""

_SYS: Final = Path("/sys")

_NVML_COMMAND: Final = (sys.executable, "-m", "nodeserve.device.nvml_child")


class GpuReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the NVML child found: GPUs, or why there is none to list."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    peer_gaps: tuple[tuple[int, int], ...] | None = None
    problem: str | None = None


def read_topology(
    *,
    sys_root: Path = _SYS,
    allowed_cpus: Callable[[], set[int]] = lambda: os.sched_getaffinity(0),
    nvml_command: Sequence[str] = _NVML_COMMAND,
    deadline_s: float = NVML_DEADLINE_S,
) -> Topology:
    """Return the GPUs and CPUs that this process may use; takes up to ``deadline_s``."""
    report = read_gpus(nvml_command, deadline_s)
    return Topology(
        gpus=report.gpus,
        cpus=read_cpus(sys_root, allowed_cpus()),
        gpu_problem=report.problem,
        driver_version=report.driver_version,
        peer_gaps=report.peer_gaps,
    )


def read_gpus(command: Sequence[str], deadline_s: float) -> GpuReport:
    """Run the NVML child and return its report; a child that hangs or dies is a problem too."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        return GpuReport(
            problem=f"the NVIDIA driver did not answer within {deadline_s:g} s; see `dmesg`"
        )
    except OSError as error:
        return GpuReport(problem=f"{command[0]} cannot be run: {error}")
    try:
        return msgspec.json.decode(done.stdout, type=GpuReport)
    except msgspec.MsgspecError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        return GpuReport(problem=f"the NVML child ended with {done.returncode}: {last}")


def read_cpus(sys_root: Path, allowed: set[int]) -> tuple[Cpu, ...]:
    """Return the allowed CPUs with their cores and NUMA nodes, from below ``/sys``.

    Cores are numbered over all sockets. What ``/sys`` doesn't say counts as a core of its own
    on node 0.
    """
    nodes = _cpu_nodes(sys_root)
    cores: dict[tuple[str, ...], int] = {}
    cpus = []
    for index in sorted(allowed):
        topology = sys_root / f"devices/system/cpu/cpu{index}/topology"
        core = _read(topology / "core_id")
        place = (_read(topology / "physical_package_id"), core) if core else (f"cpu{index}",)
        number = cores.setdefault(place, len(cores))
        cpus.append(Cpu(index=index, core=number, numa_node=nodes.get(index, 0)))
    return tuple(cpus)


def _cpu_nodes(sys_root: Path) -> dict[int, int]:
    nodes = {}
    for path in (sys_root / "devices/system/node").glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(path / "cpulist")):
            nodes[cpu] = int(path.name.removeprefix("node"))
    return nodes


def parse_cpu_list(text: str) -> list[int]:
    """Return the numbers of a list as Linux writes it, for example ``0-3,8``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
