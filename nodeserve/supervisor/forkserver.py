"""A process that has imported what its children need, and forks them on request.

It has one thread and never touches CUDA. Each child is forked twice, so that the supervisor,
a subreaper, becomes its parent: exits are the supervisor's to see, whichever fork server
made the process, and a dead fork server takes nobody along.

Run as ``python -m nodeserve.supervisor.forkserver FD SUPERVISOR_PID MODULES``; FD is one end of
a SOCK_SEQPACKET pair, MODULES are comma-separated.
"""

import array
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from nodeserve.clock import MonotonicClock
from nodeserve.config.release import installed_vllm_version, nodeserve_version
from nodeserve.device.parent_death import die_with_parent
from nodeserve.errors import NodeserveError
from nodeserve.supervisor.cgroup import ControlGroup
from nodeserve.supervisor.kernel import forgo_oom_protection, name_process

MAX_REQUEST_BYTES: Final = 1 << 20
MAX_FDS: Final = 128
"""A block manager gets one for each arena of the host tier."""

_ADOPTION_S: Final = 10.0
_EXIT_UNEXPECTED: Final = 70  # EX_SOFTWARE


class ForkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Start ``entry`` (``package.module:function``) with ``spec``.

    The first fd sent along is where stdout and stderr go; the rest are the entry's own.
    ``environment`` replaces single variables; ``cpus`` pins the process, empty leaves it free.
    ``group`` is the directory of the control group that it joins; None stays in ours.
    """

    name: str
    entry: str
    spec: bytes
    environment: dict[str, str] = {}
    cpus: tuple[int, ...] = ()
    group: str | None = None


class ForkReply(msgspec.Struct, frozen=True, kw_only=True):
    """The child's pid, or why there is none.

    The first reply of all says that we are loaded, and which releases children will run.
    """

    pid: int = 0
    error: str | None = None
    version: str = ""
    vllm_version: str | None = None


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(ForkRequest).decode


def serve(channel: socket.socket, supervisor_pid: int) -> None:
    """Fork children until the supervisor closes its end."""
    release = nodeserve_version(), installed_vllm_version()
    channel.send(_ENCODE(ForkReply(pid=os.getpid(), version=release[0], vllm_version=release[1])))
    while True:
        data, fds = _receive(channel)
        if not data:
            return
        try:
            request = _DECODE(data)
            reply = ForkReply(pid=_fork_twice(request, fds, channel, supervisor_pid))
        except (OSError, msgspec.MsgspecError) as error:
            reply = ForkReply(error=f"{type(error).__name__}: {error}")
        for fd in fds:
            os.close(fd)
        channel.send(_ENCODE(reply))


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(
        MAX_REQUEST_BYTES, socket.CMSG_SPACE(MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)


def _fork_twice(
    request: ForkRequest, fds: list[int], channel: socket.socket, supervisor_pid: int
) -> int:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        try:
            child = os.fork()
        except OSError:
            os._exit(_EXIT_UNEXPECTED)  # the pipe closes empty; here must run no second server
        if child:
            os.write(writer, child.to_bytes(4, "little"))
            os._exit(0)
        os.close(writer)
        channel.close()
        _become_child(request, fds, supervisor_pid)
    os.close(writer)
    pid = os.read(reader, 4)
    os.close(reader)
    os.waitpid(middle, 0)
    if not pid:
        text = f"no memory or process left to start {request.name}"
        raise OSError(text)
    return int.from_bytes(pid, "little")


def _become_child(request: ForkRequest, fds: list[int], supervisor_pid: int) -> NoReturn:
    code = _EXIT_UNEXPECTED
    try:
        _set_up_child(request, fds, supervisor_pid)
        _find(request.entry)(request.spec, fds[1:])
        code = 0
    except NodeserveError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  the last line of its own log
        code = error.exit_code
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException as error:  # noqa: BLE001  never return into the fork server's loop
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  as above
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _set_up_child(request: ForkRequest, fds: list[int], supervisor_pid: int) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(fds[0], 1)
    os.dup2(fds[0], 2)
    os.close(fds[0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(request.environment)
    if request.group is not None:
        ControlGroup(Path(request.group)).add(os.getpid())
    if request.cpus:
        os.sched_setaffinity(0, request.cpus)
    forgo_oom_protection()
    name_process(f"ns:{request.name}")
    _wait_for_adoption(supervisor_pid)
    die_with_parent()
    if os.getppid() != supervisor_pid:  # it died before we asked the kernel to watch
        os._exit(_EXIT_UNEXPECTED)


def _wait_for_adoption(supervisor_pid: int) -> None:
    clock = MonotonicClock()
    until_s = clock.now_s() + _ADOPTION_S
    while os.getppid() != supervisor_pid:
        if clock.now_s() > until_s:
            os._exit(_EXIT_UNEXPECTED)
        select.select([], [], [], 0.0005)  # the middle process is about to exit


def _find(entry: str) -> Callable[[bytes, list[int]], None]:
    module, _, function = entry.partition(":")
    found: Callable[[bytes, list[int]], None] = getattr(importlib.import_module(module), function)
    return found


def main() -> None:
    """Import the modules named on the command line, then serve."""
    fd, supervisor_pid, modules = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    channel = socket.socket(fileno=fd)
    name_process("ns:forkserver")
    die_with_parent()
    try:
        for module in filter(None, modules.split(",")):
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  whatever an import raises is the cause to show
        traceback.print_exc()
        channel.send(_ENCODE(ForkReply(error=f"cannot import {module}: {error}")))
        sys.exit(1)
    gc.collect()
    gc.freeze()  # the children share these pages as long as nobody counts through them
    serve(channel, supervisor_pid)


if __name__ == "__main__":
    main()
