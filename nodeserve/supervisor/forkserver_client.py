"""The supervisor's end of a fork server."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from nodeserve.errors import PeerError
from nodeserve.supervisor.forkserver import MAX_REQUEST_BYTES, ForkReply, ForkRequest

FORK_DEADLINE_S: Final = 30.0
_DECODE: Final = msgspec.msgpack.Decoder(ForkReply).decode
_ENCODE: Final = msgspec.msgpack.Encoder().encode


class ForkServer:
    """Starts a fork server and asks it for children; answers come in the order of requests.

    Attributes:
        pid: The fork server itself; who made it reaps it.
        is_loaded: Whether it has imported what its children need.
        version: The release of nodeserve that its children run; empty until it is loaded.
        vllm_version: Their release of vLLM; None where there is none.
    """

    def __init__(self, pid: int, channel: socket.socket, *, is_loaded: bool) -> None:
        """Talk to a fork server that runs, over its ``channel``; ``start`` makes a new one."""
        self.pid = pid
        self.is_loaded = is_loaded
        self.version = ""
        self.vllm_version: str | None = None
        self._channel = channel
        self._replies: deque[asyncio.Future[ForkReply]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[ForkReply] = self._loop.create_future()
        if is_loaded:
            self._loaded.set_result(ForkReply(pid=pid))
        else:
            self._replies.append(self._loaded)
        self._loop.add_reader(channel.fileno(), self._on_readable)

    @classmethod
    def start(
        cls, *, modules: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> Self:
        """Start the process; ``environment`` is its whole environment."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        argv = [sys.executable, "-m", "nodeserve.supervisor.forkserver"]
        argv += [str(theirs.fileno()), str(os.getpid()), ",".join(modules)]
        with theirs, log_path.open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # signals to our group are for us alone
            )
        process.returncode = 0  # who made it reaps it by its pid: Popen must not
        return cls(process.pid, ours, is_loaded=False)

    @property
    def fd(self) -> int:
        """Our end of its channel."""
        return self._channel.fileno()

    async def loaded(self) -> None:
        """Return when its modules are imported.

        Raises:
            PeerError: An import failed, or the process died meanwhile.
        """
        reply = await asyncio.shield(self._loaded)
        self.is_loaded = reply.error is None
        if reply.version:
            self.version, self.vllm_version = reply.version, reply.vllm_version
        if reply.error is not None:
            text = f"fork server {self.pid}: {reply.error}"
            raise PeerError(text)

    async def fork(self, request: ForkRequest, fds: Sequence[int]) -> int:
        """Return the pid of a new child of the supervisor.

        Raises:
            PeerError: The fork server is dead, or could not fork in time.
        """
        reply: asyncio.Future[ForkReply] = self._loop.create_future()
        try:
            socket.send_fds(self._channel, [_ENCODE(request)], list(fds))
        except OSError as error:
            text = f"fork server {self.pid} takes no request: {error}"
            raise PeerError(text) from error
        self._replies.append(reply)
        async with asyncio.timeout(FORK_DEADLINE_S):
            answer = await reply
        if answer.error is not None:
            text = f"fork server {self.pid} could not start {request.name}: {answer.error}"
            raise PeerError(text)
        return answer.pid

    def close(self) -> None:
        """Let the fork server end; its children live on."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        self._fail("was closed")

    def _on_readable(self) -> None:
        try:
            data = self._channel.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            self._fail("died")
        elif self._replies:
            self._take(self._replies.popleft(), _DECODE(data))

    def _take(self, reply: asyncio.Future[ForkReply], answer: ForkReply) -> None:
        if not reply.done():
            reply.set_result(answer)
        elif answer.error is None:  # nobody waits for the child any more, nor will watch it
            with contextlib.suppress(ProcessLookupError):
                os.kill(answer.pid, signal.SIGKILL)

    def _fail(self, how: str) -> None:
        while self._replies:
            reply = self._replies.popleft()
            if not reply.done():
                reply.set_result(ForkReply(error=how))
