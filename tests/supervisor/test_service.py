"""Claims about what the supervisor makes of what it hears."""

import asyncio

import pytest

from nodeserve.clock import ManualClock
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import ProcessSick
from nodeserve.supervisor.plan import DISPATCHER
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.service import Supervisor
from nodeserve.wire import control
from tests.supervisor.test_gateways import config

GIVEN_UP = [
    control.WorkerGivenUp(generation=7, reason="it does not read"),
    control.GatewayGivenUp(generation=7, reason="it does not read"),
]


async def heard_from(tmp_path, identity, message):
    """Return the events that a message of a peer leads to; the dispatcher's generation is 2."""
    supervisor = Supervisor(
        config(tmp_path), RuntimeDirectory(tmp_path / "api.sock.d"), ManualClock(0.0)
    )
    supervisor._life.slots[DISPATCHER].begin(Generation(2))
    supervisor._hear(identity, message)
    events = [supervisor._events.get_nowait() for _ in range(supervisor._events.qsize())]
    supervisor._gateways.close()
    supervisor._children.close()
    supervisor._server.close()
    return events


@pytest.mark.parametrize("message", GIVEN_UP)
def test_whom_the_dispatcher_gives_up_is_sick_with_its_reason(tmp_path, message):
    events = asyncio.run(heard_from(tmp_path, b"2", message))
    cause = "given up by the dispatcher: it does not read"
    assert events == [ProcessSick(Generation(7), cause)]


@pytest.mark.parametrize("identity", [b"7", b"3", b"cli"])
@pytest.mark.parametrize("message", GIVEN_UP)
def test_nobody_else_gives_anybody_up(tmp_path, message, identity):
    assert asyncio.run(heard_from(tmp_path, identity, message)) == []
