"""The node's processes as the kernel shows them: start, watch by pidfd, signal, reap."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.supervisor.cgroup import ControlGroup, ControlGroups
from nodeserve.supervisor.family import Family
from nodeserve.supervisor.forkserver import ForkRequest
from nodeserve.supervisor.forkserver_client import ForkServer
from nodeserve.supervisor.kernel import send_signal
from nodeserve.supervisor.runtime import RuntimeDirectory


@dataclass(frozen=True, slots=True)
class Child:
    """One live incarnation.

    ``log_start`` is where its part of its name's log begins, in bytes; ``version`` is the release
    of nodeserve that it runs, empty for a fork server.
    """

    name: str
    generation: Generation
    pid: int
    pidfd: int
    started_s: float
    log_start: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended: an exit code, or the signal that killed it.

    ``out_of_memory`` says whether the kernel did so for want of memory; None where nobody knows.
    """

    code: int | None
    signal: signal.Signals | None
    out_of_memory: bool | None = None

    @property
    def exit_code(self) -> int:
        """The code a shell would show."""
        return self.code if self.signal is None and self.code is not None else self._from_signal()

    def describe(self) -> str:
        """Return the ending as half a sentence."""
        if self.signal is signal.SIGKILL:
            return f"killed by SIGKILL{_MEMORY[self.out_of_memory]}"
        if self.signal is not None:
            return f"killed by {self.signal.name}"
        return f"exited with code {self.code}"

    def _from_signal(self) -> int:
        return 128 + (self.signal or signal.SIGKILL)


_MEMORY: Final = {
    True: ": out of memory",
    False: "",
    None: " (perhaps out of memory)",
}

CLEARED_WITHIN_S: Final = 10.0
"""How long the processes of a dead child may take to end; the kernel frees a GPU's memory then."""

LOOK_AGAIN_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class KeptChild:
    """A child whose supervisor becomes another program."""

    name: str
    generation: int
    pid: int
    started_s: float
    log_start: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class KeptForkServer:
    """A fork server, one of the children, and our end of its channel."""

    name: str
    fd: int
    is_loaded: bool
    version: str = ""
    vllm_version: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """All children. Travels from one release to the next: new fields have defaults."""

    children: list[KeptChild]
    forkservers: list[KeptForkServer]


class Children:
    """Every child of the supervisor, by generation.

    ``on_birth`` and ``on_exit`` hear of each of them once.
    """

    def __init__(
        self,
        runtime: RuntimeDirectory,
        on_birth: Callable[[Child], None],
        on_exit: Callable[[Child, Exit], None],
        groups: ControlGroups | None = None,
    ) -> None:
        self._runtime = runtime
        self._groups = groups
        self._on_birth = on_birth
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._children: dict[Generation, Child] = {}
        self._families: dict[Generation, Family] = {}
        self._ended: dict[str, list[Family]] = {}
        self._forkservers: dict[str, ForkServer] = {}
        self._guests: set[int] = set()
        self._num_forking = 0
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap_strangers)

    def get(self, generation: int) -> Child | None:
        """Return a live incarnation; None when it is gone or was never started."""
        return self._children.get(Generation(generation))

    async def start_forkserver(
        self,
        name: str,
        generation: Generation,
        *,
        modules: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        """Start a fork server and return when it has imported ``modules``.

        Raises:
            PeerError: It could not; its exit is reported as well.
        """
        log_path = self._runtime.log_path(name)
        log_start = log_path.stat().st_size if log_path.exists() else 0
        server = ForkServer.start(modules=modules, environment=environment, log_path=log_path)
        self._forkservers[name] = server
        group = self._make_group(name, generation)
        if group is not None:
            with contextlib.suppress(OSError):  # it has died: its exit says so
                group.add(server.pid)
        self._families[generation] = Family(server.pid, group)
        self._watch(self._new(name, generation, server.pid, log_start))
        await server.loaded()

    def take_over(self, kept: Kept) -> None:
        """Watch what this process had started when it ran another program.

        It is still our child: one that has died meanwhile waits to be reaped.
        """
        for child in kept.children:
            group = self._make_group(child.name, Generation(child.generation))
            self._families[Generation(child.generation)] = Family(child.pid, group)
            self._watch(
                Child(
                    name=child.name,
                    generation=Generation(child.generation),
                    pid=child.pid,
                    pidfd=os.pidfd_open(child.pid),
                    started_s=child.started_s,
                    log_start=child.log_start,
                    version=child.version,
                )
            )
        for server in kept.forkservers:
            channel = socket.socket(fileno=server.fd)
            pid = next(child.pid for child in kept.children if child.name == server.name)
            taken = ForkServer(pid, channel, is_loaded=server.is_loaded)
            taken.version, taken.vllm_version = server.version, server.vllm_version
            self._forkservers[server.name] = taken

    @property
    def kept(self) -> Kept:
        """What ``take_over`` needs; the fds in it must stay open."""
        return Kept(
            children=[
                KeptChild(
                    name=child.name,
                    generation=child.generation,
                    pid=child.pid,
                    started_s=child.started_s,
                    log_start=child.log_start,
                    version=child.version,
                )
                for child in self._children.values()
            ],
            forkservers=[
                KeptForkServer(
                    name, server.fd, server.is_loaded, server.version, server.vllm_version
                )
                for name, server in self._forkservers.items()
                if server.fd >= 0
            ],
        )

    def version_of(self, child: Child) -> str:
        """Return the release of nodeserve that a child runs; empty while a fork server loads."""
        server = self._forkservers.get(child.name)
        return child.version if server is None else server.version

    async def loaded(self, forkserver: str) -> None:
        """Return when a fork server that was taken over has imported its modules.

        Raises:
            PeerError: It could not, or died.
        """
        await self._forkservers[forkserver].loaded()

    async def run_program(
        self, argv: Sequence[str], *, environment: Mapping[str, str], fds: Sequence[int]
    ) -> int:
        """Run a program that is no part of the node to its end; return its exit code.

        ``fds`` it inherits by their numbers; the first one is its stderr too. It is killed when
        nobody waits for it any more.
        """
        process = subprocess.Popen(  # noqa: ASYNC220  vfork: some milliseconds
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=fds[0],
            pass_fds=fds,
            start_new_session=True,
        )
        self._guests.add(process.pid)
        pidfd = os.pidfd_open(process.pid)
        ended = asyncio.Event()
        self._loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            process.kill()
            code = process.wait()
            self._guests.discard(process.pid)
        return code

    async def fork(
        self, forkserver: str, generation: Generation, request: ForkRequest, fds: Sequence[int] = ()
    ) -> Child:
        """Start a child whose output goes to the log of its name.

        Raises:
            PeerError: The fork server can't.
        """
        server = self._forkservers.get(forkserver)
        if server is None:
            text = f"fork server {forkserver} is not running"
            raise PeerError(text)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        log_fd = os.open(self._runtime.log_path(request.name), flags, 0o600)
        log_start = os.fstat(log_fd).st_size
        self._num_forking += 1  # one that dies at once is not a stranger
        try:
            group = self._make_group(request.name, generation)
            if group is not None:
                request = msgspec.structs.replace(request, group=str(group.path))
            pid = await server.fork(request, [log_fd, *fds])
            self._families[generation] = Family(pid, group)
            try:
                made = self._new(request.name, generation, pid, log_start, server.version)
                return self._watch(made)
            except OSError:  # no file is left for its pidfd: nobody would see it end
                self._families.pop(generation).kill()
                os.kill(pid, signal.SIGKILL)  # it may not lead its group yet
                raise
        finally:
            self._num_forking -= 1
            os.close(log_fd)

    async def cleared(self, name: str) -> None:
        """Return when nobody is left of the children of a name that have ended.

        Raises:
            PeerError: Somebody is, though killed.
        """
        until_s = self._loop.time() + CLEARED_WITHIN_S
        while not self._clear(name):
            if self._loop.time() > until_s:
                text = (
                    f"what {name} had started was killed and has not ended in "
                    f"{CLEARED_WITHIN_S:g} s; its GPUs are not used again until then"
                )
                raise PeerError(text)
            await asyncio.sleep(LOOK_AGAIN_S)

    def send(self, generation: Generation, number: signal.Signals) -> None:
        """Signal an incarnation; one that is gone is no error."""
        child = self._children.get(generation)
        if child is None:
            return
        if number is signal.SIGTERM and child.name in self._forkservers:
            self._forkservers[child.name].close()
        send_signal(child.pidfd, number)

    def close(self) -> None:
        """Stop watching. Call it when no child is left."""
        self._loop.remove_signal_handler(signal.SIGCHLD)
        for server in self._forkservers.values():
            server.close()

    def _make_group(self, name: str, generation: Generation) -> ControlGroup | None:
        return None if self._groups is None else self._groups.make(name, generation)

    def _clear(self, name: str) -> bool:
        """Forget the ended children of a name that left nobody; return whether all did."""
        left = []
        for family in self._ended.pop(name, []):
            if family.is_gone():
                family.forget()
            else:
                left.append(family)
        if left:
            self._ended[name] = left
        return not left

    def _new(
        self, name: str, generation: Generation, pid: int, log_start: int, version: str = ""
    ) -> Child:
        pidfd = os.pidfd_open(pid)
        return Child(name, generation, pid, pidfd, self._loop.time(), log_start, version)

    def _watch(self, child: Child) -> Child:
        self._children[child.generation] = child
        self._loop.add_reader(child.pidfd, self._exited, child)
        self._on_birth(child)
        return child

    def _exited(self, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        family = self._families.pop(child.generation)
        family.kill()  # before its pid, and so its group's number, can be used again
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        del self._children[child.generation]
        if (server := self._forkservers.get(child.name)) is not None:
            server.close()
            del self._forkservers[child.name]
        self._reap_strangers()
        killed = result is not None and result.si_code != os.CLD_EXITED
        status = 0 if result is None else result.si_status
        starved = family.ran_out_of_memory()
        ended = Exit(None, signal.Signals(status), starved) if killed else Exit(status, None)
        self._ended.setdefault(child.name, []).append(family)
        self._clear(child.name)
        self._on_exit(child, ended)

    def _reap_strangers(self) -> None:
        """Reap adopted orphans; our own children keep their status for their pidfd."""
        known = {child.pid for child in self._children.values()} | self._guests
        while not self._num_forking:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in known:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
            for name in list(self._ended):
                self._clear(name)
