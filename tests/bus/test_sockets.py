"""Claims about sockets in the loop, over real ZeroMQ."""

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from nodeserve.bus.sockets import Reader, Writer, bind, open_socket, send_now
from nodeserve.errors import ConfigError, PeerError

WITHIN_S = 5


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


class Sink:
    """Collects messages and says when the awaited number is there."""

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []
        self._wanted = 0
        self._enough = asyncio.Event()

    def __call__(self, frames: list[bytes]) -> None:
        self.messages.append(frames)
        if len(self.messages) >= self._wanted:
            self._enough.set()

    async def wait_for(self, count: int) -> None:
        self._wanted = count
        if len(self.messages) < count:
            self._enough.clear()
            async with asyncio.timeout(WITHIN_S):
                await self._enough.wait()


async def test_bound_socket_is_private_and_the_umask_is_put_back(context, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        sock = open_socket(context, zmq.PULL)
        bind(sock, f"ipc://{tmp_path}/a.sock")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) & 0o077 == 0


async def test_bind_refuses_a_live_address_and_leaves_it_working(context, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/a.sock"
    first, second = open_socket(context, zmq.PULL), open_socket(context, zmq.PULL)
    bind(first, address)
    with pytest.raises(PeerError, match="is live"):
        bind(second, address)
    sink = Sink()
    reader = Reader(first, sink)
    push = open_socket(context, zmq.PUSH)
    push.connect(address)
    send_now(push, [b"x"])
    await sink.wait_for(1)
    reader.close()


async def test_bind_refuses_a_path_that_is_too_long(context, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kernel takes 107"):
        bind(open_socket(context, zmq.PULL), f"ipc://{tmp_path}/{'a' * 107}")


async def test_all_messages_arrive_in_order_over_many_batches(context, tmp_path: Path) -> None:
    pull, push = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    push.connect(f"ipc://{tmp_path}/a.sock")
    sink = Sink()
    reader = Reader(pull, sink, batch=3)
    for start in range(0, 5000, 500):
        for number in range(start, start + 500):
            push.send(str(number).encode())
        await sink.wait_for(start + 500)
    assert sink.messages == [[str(number).encode()] for number in range(5000)]
    reader.close()


async def test_busy_socket_does_not_starve_another(context, tmp_path: Path) -> None:
    order: list[str] = []
    pushes = []
    readers = []
    enough = asyncio.Event()

    def note(frames: list[bytes]) -> None:
        order.append(frames[0].decode())
        if len(order) == 110:
            enough.set()

    for name, count in (("busy", 100), ("calm", 10)):
        pull, push = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
        bind(pull, f"ipc://{tmp_path}/{name}.sock")
        push.connect(f"ipc://{tmp_path}/{name}.sock")
        for _ in range(count):
            push.send(name.encode())
        pull.poll(WITHIN_S * 1000)
        pushes.append(push)
        readers.append(Reader(pull, note, batch=4))
    async with asyncio.timeout(WITHIN_S):
        await enough.wait()
    assert order.index("calm") < 100
    for reader in readers:
        reader.close()


async def test_end_of_each_turn_is_told_after_its_messages(context, tmp_path: Path) -> None:
    pull, push = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    push.connect(f"ipc://{tmp_path}/a.sock")
    turns: list[list[bytes]] = [[]]
    over = asyncio.Event()

    def end() -> None:
        if turns[-1][-1:] == [b"9"]:
            over.set()
        if turns[-1]:
            turns.append([])

    for number in range(10):
        push.send(str(number).encode())
    reader = Reader(pull, lambda frames: turns[-1].append(frames[0]), on_turn_end=end, batch=3)
    async with asyncio.timeout(WITHIN_S):
        await over.wait()
    reader.close()
    assert [message for turn in turns for message in turn] == [
        str(number).encode() for number in range(10)
    ]
    assert max(map(len, turns)) <= 3


async def test_sends_on_a_read_socket_lose_no_message(context, tmp_path: Path) -> None:
    router = open_socket(context, zmq.ROUTER)
    bind(router, f"ipc://{tmp_path}/a.sock")
    dealer = open_socket(context, zmq.DEALER, identity=b"d")
    dealer.connect(f"ipc://{tmp_path}/a.sock")
    answers = Sink()

    def echo(frames: list[bytes]) -> None:
        send_now(router, frames)
        echoing.look_again()

    echoing, reading = Reader(router, echo, batch=2), Reader(dealer, answers, batch=2)
    for number in range(600):
        send_now(dealer, [str(number).encode()])
        reading.look_again()
    await answers.wait_for(600)
    echoing.close()
    reading.close()


async def test_handler_that_fails_does_not_hold_back_later_messages(
    context, tmp_path: Path
) -> None:
    pull, push = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    push.connect(f"ipc://{tmp_path}/a.sock")
    sink = Sink()
    failures: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, seen: failures.append(str(seen["exception"]))
    )

    def fail_once(frames: list[bytes]) -> None:
        if frames == [b"bad"]:
            raise RuntimeError("bad")
        sink(frames)

    reader = Reader(pull, fail_once)
    push.send(b"bad")
    push.send(b"good")
    await sink.wait_for(1)
    assert (sink.messages, failures) == ([[b"good"]], ["bad"])
    reader.close()


async def test_paused_reader_takes_nothing_until_resumed(context, tmp_path: Path) -> None:
    pull, push = open_socket(context, zmq.PULL), open_socket(context, zmq.PUSH)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    push.connect(f"ipc://{tmp_path}/a.sock")
    sink = Sink()
    reader = Reader(pull, sink)
    reader.pause()
    push.send(b"x")
    pull.poll(WITHIN_S * 1000)
    await asyncio.sleep(0)
    assert sink.messages == []
    reader.resume()
    await sink.wait_for(1)
    reader.close()


async def test_unknown_peer_is_an_error(context, tmp_path: Path) -> None:
    router = open_socket(context, zmq.ROUTER)
    bind(router, f"ipc://{tmp_path}/a.sock")
    with pytest.raises(PeerError, match="cannot be sent"):
        send_now(router, [b"nobody", b"x"])


async def test_oversized_frame_drops_its_connection_and_not_the_next(
    context, tmp_path: Path
) -> None:
    pull = open_socket(context, zmq.PULL, max_message_bytes=1000)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    sink = Sink()
    reader = Reader(pull, sink)
    big, small = open_socket(context, zmq.PUSH), open_socket(context, zmq.PUSH)
    big.connect(f"ipc://{tmp_path}/a.sock")
    big.send(b"x" * 1001)
    small.connect(f"ipc://{tmp_path}/a.sock")
    small.send(b"fine")
    await sink.wait_for(1)
    assert sink.messages == [[b"fine"]]
    reader.close()


async def test_raw_bytes_on_the_socket_do_not_stop_it(context, tmp_path: Path) -> None:
    pull = open_socket(context, zmq.PULL)
    bind(pull, f"ipc://{tmp_path}/a.sock")
    sink = Sink()
    reader = Reader(pull, sink)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(tmp_path / "a.sock"))
        raw.sendall(os.urandom(1 << 12))
    push = open_socket(context, zmq.PUSH)
    push.connect(f"ipc://{tmp_path}/a.sock")
    push.send(b"fine")
    async with asyncio.timeout(WITHIN_S):
        while [b"fine"] not in sink.messages:
            await sink.wait_for(len(sink.messages) + 1)
    reader.close()


async def test_slow_peer_gets_all_in_order_and_we_hear_when_it_caught_up(
    context, tmp_path: Path
) -> None:
    pull, push = (open_socket(context, k, high_water_messages=2) for k in (zmq.PULL, zmq.PUSH))
    bind(pull, f"ipc://{tmp_path}/a.sock")
    push.connect(f"ipc://{tmp_path}/a.sock")
    drained = asyncio.Event()
    writer = Writer(push, drained.set, limit=1000)
    sent = 0
    while not writer.congested:
        writer.send([sent.to_bytes(4, "big"), b"x" * 100_000])
        sent += 1
    for _ in range(20):
        writer.send([sent.to_bytes(4, "big"), b""])
        sent += 1
    sink = Sink()
    reader = Reader(pull, sink)
    await sink.wait_for(sent)
    async with asyncio.timeout(WITHIN_S):
        await drained.wait()
    assert writer.num_waiting == 0
    assert [int.from_bytes(frames[0], "big") for frames in sink.messages] == list(range(sent))
    reader.close()
    writer.close()


async def test_peer_that_never_reads_is_an_error_not_a_growing_queue(
    context, tmp_path: Path
) -> None:
    push = open_socket(context, zmq.PUSH, high_water_messages=2)
    push.connect(f"ipc://{tmp_path}/nobody.sock")
    writer = Writer(push, lambda: None, limit=10)
    for _ in range(12):
        writer.send([b"x"])
    with pytest.raises(PeerError, match="last 10 messages"):
        writer.send([b"x"])
    writer.close()


async def test_a_closed_reader_waits_for_no_peer_however_long_its_socket_would(
    tmp_path: Path,
) -> None:
    own = zmq.Context()
    sock = open_socket(own, zmq.DEALER)
    sock.setsockopt(zmq.LINGER, -1)  # for ever
    sock.connect(f"ipc://{tmp_path}/gone")
    sock.send(b"to nobody")
    Reader(sock, lambda frames: None).close()
    ending = threading.Thread(target=own.term, daemon=True)
    ending.start()
    await asyncio.to_thread(ending.join, 10)
    assert not ending.is_alive()
