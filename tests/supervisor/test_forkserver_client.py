import asyncio
import os
import signal
import socket
import subprocess

import msgspec
import pytest

from nodeserve.errors import PeerError
from nodeserve.supervisor.forkserver import ForkReply, ForkRequest
from nodeserve.supervisor.forkserver_client import ForkServer

DEADLINE_S = 20


def start(tmp_path, modules):
    return ForkServer.start(modules=modules, environment=os.environ, log_path=tmp_path / "log")


def exit_code(server):
    return os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1])


def test_a_module_that_cannot_be_imported_is_named(tmp_path):
    async def body():
        server = start(tmp_path, ["json", "no_such_module_at_all"])
        with pytest.raises(PeerError, match="no_such_module_at_all"):
            await server.loaded()
        assert exit_code(server) == 1
        server.close()

    asyncio.run(body())


def test_a_dead_fork_server_is_an_error_not_a_wait(tmp_path):
    async def body():
        server = start(tmp_path, [])
        await server.loaded()
        os.kill(server.pid, signal.SIGKILL)
        exit_code(server)
        request = ForkRequest(name="x", entry="os:getpid", spec=b"")
        with pytest.raises(PeerError, match=str(server.pid)):
            await server.fork(request, [2])
        server.close()

    asyncio.run(body())


def test_closing_lets_it_end_by_itself(tmp_path):
    async def body():
        server = start(tmp_path, [])
        await server.loaded()
        server.close()
        assert exit_code(server) == 0

    asyncio.run(body())


def test_a_child_that_comes_when_nobody_waits_for_it_any_more_is_killed(tmp_path):
    late = subprocess.Popen(["sleep", "600"])

    async def body():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        server = ForkServer(1, ours, is_loaded=True)
        request = ForkRequest(name="x", entry="os:getpid", spec=b"")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await server.fork(request, [2])
        theirs.send(msgspec.msgpack.encode(ForkReply(pid=late.pid)))
        assert await asyncio.to_thread(late.wait, DEADLINE_S) == -signal.SIGKILL
        server.close()
        theirs.close()

    asyncio.run(body())
