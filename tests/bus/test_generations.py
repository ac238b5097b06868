"""A socket whose peers are known by their generations."""

import asyncio

import pytest
import zmq

from nodeserve.bus.generations import GenerationsSocket
from nodeserve.errors import PeerError

WITHIN_S = 10


def decode(frame):
    if frame == b"bad":
        raise ValueError
    return frame


class Bound(GenerationsSocket):
    """Keeps what it hears."""

    def __init__(self, directory) -> None:
        self.heard = asyncio.Queue()
        self.address = f"ipc://{directory}/g"
        super().__init__(
            self.address, decode, lambda *said: self.heard.put_nowait(said), max_message_bytes=1000
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    async def hear(self):
        return await asyncio.wait_for(self.heard.get(), WITHIN_S)


@pytest.fixture
def dealers():
    context = zmq.Context()

    def make(address, identity):
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.IDENTITY, identity)
        sock.connect(address)
        return sock

    yield make
    context.destroy(linger=0)


async def test_a_peer_is_known_by_its_generation_and_answered(tmp_path, dealers) -> None:
    with Bound(tmp_path) as bound:
        peer = dealers(bound.address, b"12")
        peer.send(b"hello")
        assert await bound.hear() == (12, b"hello")
        bound.send_frame(12, b"answer")
        assert await asyncio.to_thread(peer.recv) == b"answer"


async def test_nonsense_is_counted_and_what_follows_is_heard(tmp_path, dealers) -> None:
    with Bound(tmp_path) as bound:
        stranger, peer = dealers(bound.address, b"x"), dealers(bound.address, b"3")
        stranger.send(b"hello")
        peer.send(b"bad")
        peer.send_multipart([b"two", b"frames"])
        peer.send(b"good")
        assert await bound.hear() == (3, b"good")
        assert 2 <= bound.num_rejected <= 3  # the stranger's may come later
        assert bound.heard.empty()


async def test_what_is_said_while_it_pauses_waits(tmp_path, dealers) -> None:
    with Bound(tmp_path) as bound:
        bound.pause()
        peer = dealers(bound.address, b"3")
        peer.send(b"early")
        await asyncio.to_thread(peer.poll, 50, zmq.POLLOUT)
        assert bound.heard.empty()
        bound.resume()
        assert await bound.hear() == (3, b"early")


async def test_who_is_not_there_cannot_be_sent_to(tmp_path) -> None:
    with Bound(tmp_path) as bound, pytest.raises(PeerError):
        bound.send_frame(3, b"answer")


async def test_an_address_in_use_is_refused(tmp_path) -> None:
    with Bound(tmp_path), pytest.raises(PeerError, match="another process listens there"):
        Bound(tmp_path)
