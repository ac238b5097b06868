import asyncio

import pytest

from nodeserve.errors import PeerError
from nodeserve.supervisor import outbox
from nodeserve.supervisor.outbox import Outbox
from nodeserve.wire.control import CommandReply, DrainNode, ReportStatus

DEADLINE_S = 10


class Server:
    """Reaches the peers in ``there``."""

    def __init__(self):
        self.there = set()
        self.sent = asyncio.Queue()

    def send(self, identity, message):
        if identity not in self.there:
            raise PeerError("nobody has that identity")
        self.sent.put_nowait((identity, message))


def test_without_patience_a_peer_that_is_not_there_is_an_error():
    async def body():
        with pytest.raises(PeerError):
            Outbox(Server()).send(b"2", DrainNode())

    asyncio.run(body())


def test_messages_wait_in_order_for_a_peer_that_connects_again():
    async def body():
        server = Server()
        box = Outbox(server)
        box.be_patient()
        server.there = {b"3"}
        calls = [ReportStatus(call_id=number) for number in range(5)]
        for call in calls[:4]:
            box.send(b"2", call)
        box.send(b"3", DrainNode())
        assert await server.sent.get() == (b"3", DrainNode())
        assert not box.is_empty
        server.there.add(b"2")
        box.send(b"2", calls[4])  # behind those that wait
        async with asyncio.timeout(DEADLINE_S):
            assert [await server.sent.get() for _ in calls] == [(b"2", call) for call in calls]
        assert box.is_empty
        box.close()

    asyncio.run(body())


def test_patience_ends(monkeypatch, caplog):
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.02)

    async def body():
        box = Outbox(Server())
        box.be_patient()
        box.send(b"c1", CommandReply())
        async with asyncio.timeout(DEADLINE_S):
            while not box.is_empty:  # noqa: ASYNC110  (no event says so)
                await asyncio.sleep(0.001)
        with pytest.raises(PeerError):
            box.send(b"c1", CommandReply())

    asyncio.run(body())
    assert "peer_unreachable" in caplog.text
