"""Claims about the control channel, over real sockets."""

import asyncio
import os
import resource
import threading
from pathlib import Path

import pytest
import zmq

from nodeserve.bus.channel import BlockingControlClient, ControlChannel, ControlServer
from nodeserve.bus.sockets import listen_at
from nodeserve.errors import PeerError
from nodeserve.wire.control import (
    CommandReply,
    ReportStatus,
    StatusRequest,
    WorkerHeartbeat,
    WorkerServing,
)

GARBAGE = [b"", b"\xc1", b"\xff" * 64, b"\x91" * 50_000, b"\x81\xa4type\xa1x", b"\xa3\xff\xff\xff"]
WITHIN_S = 5


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/c.sock"


async def test_both_ends_talk(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    child.send(WorkerServing(generation=7))
    async with asyncio.timeout(WITHIN_S):
        assert await server.recv() == (b"7", WorkerServing(generation=7))
        server.send(b"7", ReportStatus(call_id=1))
        assert await child.recv() == ReportStatus(call_id=1)
    child.close()
    server.close()


async def test_many_messages_arrive_in_order_while_answers_go_out(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")

    async def answer_all() -> None:
        for call_id in range(500):
            assert await server.recv() == (b"7", ReportStatus(call_id=call_id))
            server.send(b"7", CommandReply(detail=str(call_id)))

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(answer_all())
        for call_id in range(500):
            child.send(ReportStatus(call_id=call_id))
        for call_id in range(500):
            assert await child.recv() == CommandReply(detail=str(call_id))
    child.close()
    server.close()


async def test_garbage_to_the_server_is_counted_and_the_next_message_is_fine(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    for frame in GARBAGE:
        child._socket.send([frame])
    child._socket.send([b"two", b"frames"])
    child.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        assert await server.recv() == (b"7", StatusRequest())
    assert server.num_bad_frames == len(GARBAGE) + 1
    child.close()
    server.close()


async def test_garbage_to_a_child_is_counted_and_the_next_message_is_fine(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    child.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        identity, _ = await server.recv()
        for frame in GARBAGE:
            server._socket.send([identity, frame])
        server.send(identity, CommandReply())
        assert await child.recv() == CommandReply()
    assert child.num_bad_frames == len(GARBAGE)
    child.close()
    server.close()


async def test_unknown_peer_is_an_error_and_the_server_goes_on(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    with pytest.raises(PeerError, match="b'99'"):
        server.send(b"99", CommandReply())
    assert server.num_undelivered == 1
    child.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        assert (await server.recv())[1] == StatusRequest()
    child.close()
    server.close()


async def test_second_server_on_a_live_address_is_refused(address: str) -> None:
    server = ControlServer(listen_at(address))
    with pytest.raises(PeerError, match="is live"):
        ControlServer(listen_at(address))
    server.close()


async def test_peer_that_never_reads_is_an_error_not_a_growing_queue(address: str) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    child.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        await server.recv()

    def send_without_end() -> None:
        for _ in range(100_000):
            server.send(b"7", CommandReply(detail="x" * 1000))

    with pytest.raises(PeerError):
        send_without_end()
    child._socket.socket.setsockopt(zmq.LINGER, 0)
    child.close()
    server._socket.socket.setsockopt(zmq.LINGER, 0)
    server.close()


def test_blocking_client_gives_up_at_its_deadline_when_nobody_listens(address: str) -> None:
    client = BlockingControlClient(address, b"c1")
    with pytest.raises(PeerError, match=r"within 0\.02 s"):
        client.request(StatusRequest(), 0.02)
    client.close()


async def test_blocking_client_request_is_answered(address: str) -> None:
    server, client = ControlServer(listen_at(address)), BlockingControlClient(address, b"c1")
    async with asyncio.timeout(WITHIN_S):
        call = asyncio.create_task(asyncio.to_thread(client.request, StatusRequest(), WITHIN_S))
        identity, message = await server.recv()
        assert (identity, message) == (b"c1", StatusRequest())
        server._socket.send([identity, b"\xc1"])
        server.send(identity, CommandReply(detail="done"))
        assert await call == CommandReply(detail="done")
    assert client.num_bad_frames == 1
    client.close()
    server.close()


def test_blocking_client_works_in_a_process_of_many_files(address: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most[0], 1200), max(most[1], 1200)))
    files = [os.dup(0) for _ in range(1050)]
    try:
        client = BlockingControlClient(address, b"c1")
        assert client._fd > 1024
        with pytest.raises(PeerError, match="no message within"):
            client.request(StatusRequest(), 0.01)
        client.close()
    finally:
        for fd in files:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


async def test_threads_send_while_another_waits(address: str) -> None:
    server, client = ControlServer(listen_at(address)), BlockingControlClient(address, b"7")

    def beat() -> None:
        for steps in range(200):
            client.send(WorkerHeartbeat(generation=7, steps=steps, num_requests=0))

    async with asyncio.timeout(WITHIN_S):
        waiting = asyncio.create_task(asyncio.to_thread(client.recv, WITHIN_S))
        threads = [threading.Thread(target=beat) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(400):
            assert isinstance((await server.recv())[1], WorkerHeartbeat)
        for thread in threads:
            thread.join(WITHIN_S)
        server.send(b"7", ReportStatus(call_id=1))
        assert await waiting == ReportStatus(call_id=1)
    client.close()
    server.close()


async def test_last_words_before_closing_arrive(address: str) -> None:
    server, client = ControlServer(listen_at(address)), BlockingControlClient(address, b"7")
    client.send(WorkerServing(generation=7))
    client.close()
    async with asyncio.timeout(WITHIN_S):
        assert await server.recv() == (b"7", WorkerServing(generation=7))
    with pytest.raises(PeerError, match="closed"):
        client.send(WorkerServing(generation=7))
    server.close()


async def test_peers_of_a_server_that_hung_up_connect_again_to_the_same_socket(
    address: str,
) -> None:
    server, child = ControlServer(listen_at(address)), ControlChannel(address, b"7")
    child.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        await server.recv()
        waiting = asyncio.create_task(server.recv())
        await asyncio.sleep(0)
        server.send(b"7", ReportStatus(call_id=1))
        server.hang_up()
        server.pick_up()
        assert await child.recv() == ReportStatus(call_id=1)  # sent last, not lost
        child.send(WorkerServing(generation=7))
        assert await waiting == (b"7", WorkerServing(generation=7))
        server.send(b"7", ReportStatus(call_id=2))
        assert await child.recv() == ReportStatus(call_id=2)
    child.close()
    server.close()


async def test_a_message_that_has_come_is_polled_and_garbage_is_not(address: str) -> None:
    server, client = ControlServer(listen_at(address)), BlockingControlClient(address, b"7")
    assert client.poll() is None
    client.send(StatusRequest())
    async with asyncio.timeout(WITHIN_S):
        await server.recv()
        server._socket.send([b"7", b"\xc1"])
        server.send(b"7", ReportStatus(call_id=3))
        while (polled := client.poll()) is None:  # noqa: ASYNC110  (no event says so)
            await asyncio.sleep(0.001)
    assert polled == ReportStatus(call_id=3)
    assert client.num_bad_frames == 1
    client.close()
    server.close()
