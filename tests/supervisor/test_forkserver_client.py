import asyncio
import os
import signal

import pytest

from nodeserve.errors import PeerError
from nodeserve.supervisor.forkserver import ForkRequest
from nodeserve.supervisor.forkserver_client import ForkServer


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
