"""Claims about the dispatcher's own sockets; what it says through them is tested beside it."""

import asyncio
from pathlib import Path

import pytest

from nodeserve.dispatcher.sockets import Sockets
from nodeserve.errors import PeerError
from tests.dispatcher.fakes import spec_in


async def test_engine_that_nobody_has_heard_of_cannot_be_sent_to(tmp_path: Path) -> None:
    ports = Sockets(spec_in(tmp_path))
    engines = ports.engines(lambda _: None)
    with pytest.raises(PeerError, match="message of 2 frames cannot be sent"):
        engines.send([b"\7\0", b"payload"])
    engines.close()
    ports.close()


async def test_address_of_a_dispatcher_that_runs_is_refused(tmp_path: Path) -> None:
    ports, others = Sockets(spec_in(tmp_path)), Sockets(spec_in(tmp_path))
    first = ports.outputs(lambda _: None, lambda: None)
    with pytest.raises(PeerError):
        others.outputs(lambda _: None, lambda: None)
    first.close()
    ports.close()
    others.close()


async def test_call_that_was_cancelled_does_not_come(tmp_path: Path) -> None:
    ports = Sockets(spec_in(tmp_path))
    called: list[str] = []
    ports.call_later(0.0, lambda: called.append("cancelled")).cancel()
    last = await _called_back(ports)
    assert (called, last) == ([], "called")
    ports.close()


async def _called_back(ports: Sockets) -> str:
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ports.call_later(0.0, lambda: done.set_result("called"))
    return await done
