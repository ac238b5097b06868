"""What `nodeserve doctor` looks at: each check is one line with a verdict and advice."""

import enum
import os
import resource
import shutil
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.cli.connection import ask, find_node
from nodeserve.cli.status import size
from nodeserve.config import paths, release
from nodeserve.config.facts import Topology
from nodeserve.config.features import refuse_model
from nodeserve.config.model import find_model
from nodeserve.config.problems import Problems
from nodeserve.errors import ConfigError, NodeserveError
from nodeserve.gateway.rust_server import find_binary
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.kinds import ProcessKind

_NEEDED_PYTHON: Final = (3, 11)
_ENOUGH_FILES: Final = 65_536
_LEAST_FILES: Final = 4_096
_ENOUGH_SHM_BYTES: Final = 1 << 30
_GIB: Final = 1 << 30
_CHILD_DEADLINE_S: Final = 10.0


class Verdict(enum.StrEnum):
    """How a check came out. Only FAIL keeps a node from serving."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line. ``advice`` says what to do, and is empty where all is well."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def _ok(name: str, found: str) -> Check:
    return Check(name=name, verdict=Verdict.OK, found=found)


def _warn(name: str, found: str, advice: str) -> Check:
    return Check(name=name, verdict=Verdict.WARN, found=found, advice=advice)


def _fail(name: str, found: str, advice: str) -> Check:
    return Check(name=name, verdict=Verdict.FAIL, found=found, advice=advice)


def check_versions(
    python: tuple[int, ...], vllm: str | None, pinned: str, environ: Mapping[str, str]
) -> Iterator[Check]:
    """Yield the software: Python, nodeserve, vLLM and its Rust front end."""
    shown = ".".join(str(part) for part in python[:3])
    if python >= _NEEDED_PYTHON:
        yield _ok("python", f"{shown} at {sys.executable}")
    else:
        yield _fail("python", shown, "install Python 3.11 or newer")
    yield _ok("nodeserve", release.nodeserve_version())
    if vllm is None:
        advice = "install nodeserve[cuda] or nodeserve[cpu]; without it only --simulate works"
        yield _warn("vllm", f"not installed; this release needs {pinned}", advice)
    else:
        try:
            release.check_vllm(vllm, pinned)
            yield _ok("vllm", vllm)
        except ConfigError:
            advice = "install nodeserve[cuda] or nodeserve[cpu] again"
            yield _fail("vllm", f"{vllm}; this release needs {pinned}", advice)
    try:
        yield _ok("vllm-rs", str(find_binary(environ)))
    except NodeserveError as error:
        yield _warn("vllm-rs", "not found", str(error))


def check_gpus(topology: Topology) -> Iterator[Check]:
    """Yield the driver, each GPU and whether GPUs can read each other's memory."""
    if topology.gpu_problem is not None:
        yield _fail("gpus", topology.gpu_problem, "see `nvidia-smi` and `dmesg`; reload the driver")
        return
    if not topology.gpus:
        yield _ok("gpus", "none: engines run on the CPU")
        return
    yield _ok("driver", str(topology.driver_version))
    for gpu in topology.gpus:
        where = "" if gpu.numa_node is None else f", NUMA node {gpu.numa_node}"
        memory = f"{gpu.memory_bytes / _GIB:.0f} GiB"
        yield _ok(f"gpu {gpu.index}", f"{gpu.name}, {memory}{where}, {gpu.uuid}")
    if topology.peer_gaps is None:
        yield _warn("p2p", "the driver does not say", "see `nvidia-smi topo -p2p r`")
    elif topology.peer_gaps:
        pairs = ", ".join(f"{a}-{b}" for a, b in topology.peer_gaps)
        advice = (
            "tensor parallelism between these goes through host memory; "
            "see IOMMU and ACS in the BIOS"
        )
        yield _warn("p2p", f"no direct access between {pairs}", advice)
    elif len(topology.gpus) > 1:
        yield _ok("p2p", "every GPU reads every other one's memory")


def check_cpus(topology: Topology) -> Check:
    """Return how many CPUs this process may use."""
    nodes = len({cpu.numa_node for cpu in topology.cpus})
    cores = len({cpu.core for cpu in topology.cpus})
    found = f"{len(topology.cpus)} CPUs, {cores} cores, NUMA nodes: {nodes}"
    if len(topology.cpus) > 1:
        return _ok("cpus", found)
    return _warn("cpus", found, "two or more let gateway and engines run beside each other")


def check_files(limit: tuple[int, int]) -> Check:
    """Return whether enough files can be open; ``limit`` is soft and hard RLIMIT_NOFILE."""
    soft, hard = limit
    found = f"{_limit(soft)} (hard {_limit(hard)})"
    advice = "raise it: `ulimit -n 65536`, or LimitNOFILE= in the unit"
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return _ok("open files", found)
    if soft >= _LEAST_FILES or hard == resource.RLIM_INFINITY or hard >= _LEAST_FILES:
        return _warn("open files", found, advice)
    return _fail("open files", found, advice)


def check_locked_memory(limit: tuple[int, int], *, has_gpus: bool) -> Check:
    """Return whether memory can be pinned for GPUs; ``limit`` is RLIMIT_MEMLOCK."""
    soft, hard = limit
    found = f"{_limit(soft)} bytes (hard {_limit(hard)})"
    if not has_gpus or soft == resource.RLIM_INFINITY:
        return _ok("locked memory", found)
    advice = "raise it: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit"
    return _warn("locked memory", found, advice)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_shared_memory(directory: Path) -> Check:
    """Return whether TP groups have room for their queues in ``/dev/shm``."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError as error:
        return _warn("shared memory", f"{directory}: {error.strerror}", f"mount {directory}")
    found = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free in {directory}"
    if usage.free >= _ENOUGH_SHM_BYTES:
        return _ok("shared memory", found)
    return _warn("shared memory", found, "workers with tp > 1 need 1 GiB; remount it larger")


def check_peer_memory() -> Check:
    """Return whether a process may open another one's memory through /proc, as workers do."""
    fd = os.memfd_create("nodeserve-doctor", 0)
    code = f"open('/proc/{os.getpid()}/fd/{fd}', 'rb').close()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            timeout=_CHILD_DEADLINE_S,
            check=False,
        )
        problem = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = [str(error)]
    finally:
        os.close(fd)
    if not problem:
        return _ok("peer memory", f"processes share memory through /proc{_ptrace_scope()}")
    advice = "let processes of one user see each other: check hidepid, LSM and container policy"
    return _fail("peer memory", f"{problem[0]}{_ptrace_scope()}", advice)


def _ptrace_scope() -> str:
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return f" (ptrace_scope {scope})"


def check_socket(socket: Path) -> Iterator[Check]:
    """Yield whether a node could put its socket and its internals there, or is there already."""
    elsewhere = "give another path with --socket"
    problem = paths.path_problem(socket, paths.MAX_OWN_SOCKET_BYTES)
    if problem is not None:
        yield _fail("socket", problem, elsewhere)
        return
    if socket.exists():
        yield _taken(socket, elsewhere)
        return
    if _has_node(socket):
        advice = (
            "nobody new can connect; restart the node, one behind systemd with "
            "`systemctl restart nodeserve.socket nodeserve.service`"
        )
        yield _fail("socket", f"{socket} is gone, and the node behind it runs", advice)
        return
    directory = socket.parent
    while not directory.exists():
        directory = directory.parent
    if os.access(directory, os.W_OK | os.X_OK):
        yield _ok("socket", f"{socket} can be made")
    else:
        advice = f"{elsewhere}, or run as another user"
        yield _fail("socket", f"uid {os.getuid()} may not write to {directory}", advice)


def _has_node(socket: Path) -> bool:
    try:
        ask(find_node(str(socket), None), StatusRequest(), StatusReply, within_s=2.0)
    except NodeserveError:
        return False
    return True


def _taken(socket: Path, elsewhere: str) -> Check:
    if not socket.is_socket():
        return _fail("socket", f"{socket} is there and is no socket", elsewhere)
    try:
        node = ask(find_node(str(socket), None), StatusRequest(), StatusReply, within_s=2.0)
    except NodeserveError:
        return _taken_by_others(socket, elsewhere)
    pid = next((each.pid for each in node.processes if each.kind is ProcessKind.SUPERVISOR), None)
    found = f"{socket}: a node is {node.state} there, pid {pid}, serving {node.served_model_name}"
    if node.detail is None:
        return _ok("socket", found)
    return _warn("socket", f"{found}; {node.detail}", "see `nodeserve status`")


def _taken_by_others(socket: Path, elsewhere: str) -> Check:
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(_CHILD_DEADLINE_S)
        try:
            probe.connect(str(socket))
        except ConnectionRefusedError:
            return _ok("socket", f"{socket} was left by a dead process; a node takes it over")
        except OSError as error:
            return _fail("socket", f"{socket} is there, and {error.strerror}", elsewhere)
    return _fail("socket", f"{socket}: a program listens there that is no node of ours", elsewhere)


def check_model(given: str, environ: Mapping[str, str]) -> Check:
    """Return whether a model can be read and is of a kind that this release serves."""
    try:
        model = find_model(given, environ)
        problems = Problems("model")
        refuse_model(model, {}, problems)
        problems.raise_if_any()
    except ConfigError as error:
        return _fail("model", str(error), "give another model directory")
    directory = Path(model.path)
    weights = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    unreadable = [path.name for path in directory.iterdir() if not os.access(path, os.R_OK)]
    if unreadable:
        found = f"uid {os.getuid()} may not read {', '.join(sorted(unreadable)[:3])}"
        return _fail("model", found, f"change the permissions in {directory}")
    if not weights:
        return _warn("model", f"{directory} holds no weights", "only --simulate can serve it")
    num_bytes = sum(path.stat().st_size for path in weights)
    kind = ", ".join(model.architectures) or "of unknown kind"
    return _ok("model", f"{kind}, {size(num_bytes)} of weights in {directory}")
