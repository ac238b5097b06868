"""The socket of all engines."""

import asyncio

import pytest
import zmq

from nodeserve.block_manager.sockets import EnginesSocket
from nodeserve.errors import PeerError
from nodeserve.wire import kv_tier

WITHIN_S = 10


class Bound(EnginesSocket):
    """Keeps what it hears."""

    def __init__(self, directory) -> None:
        self.heard = asyncio.Queue()
        self.address = f"ipc://{directory}/t"
        super().__init__(self.address, lambda *request: self.heard.put_nowait(request))

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def dealer(address, identity):
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.IDENTITY, identity)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(address)
    return context, sock


async def test_an_engine_is_known_by_its_generation_and_answered(tmp_path) -> None:
    with Bound(tmp_path) as made:
        context, sock = dealer(made.address, b"12")
        request = kv_tier.KvRelease(call_ids=(1,))
        sock.send(kv_tier.encode_message(request))
        assert await asyncio.wait_for(made.heard.get(), WITHIN_S) == (12, request)
        made.send(12, kv_tier.KvWho())
        assert kv_tier.decode_answer(await asyncio.to_thread(sock.recv)) == kv_tier.KvWho()
        context.destroy(linger=0)


async def test_who_is_not_there_cannot_be_sent_to(tmp_path) -> None:
    with Bound(tmp_path) as made, pytest.raises(PeerError):
        made.send(3, kv_tier.KvWho())


@pytest.mark.parametrize("identity", [b"x", b"0", b"01", b"-1", b"1" * 11])
async def test_who_names_no_generation_is_not_heard(tmp_path, identity) -> None:
    with Bound(tmp_path) as made:
        bad, bad_sock = dealer(made.address, identity)
        request = kv_tier.encode_message(kv_tier.KvRelease(call_ids=()))
        taken = asyncio.Event()
        take = made._reader._on_message

        def take_and_say(frames) -> None:
            take(frames)
            taken.set()

        made._reader._on_message = take_and_say
        bad_sock.send(request)
        await asyncio.wait_for(taken.wait(), WITHIN_S)
        assert made.num_rejected == 1
        assert made.heard.empty()
        bad.destroy(linger=0)


async def test_an_address_in_use_is_refused(tmp_path) -> None:
    with Bound(tmp_path), pytest.raises(PeerError, match="another process listens there"):
        Bound(tmp_path)
