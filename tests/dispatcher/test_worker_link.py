"""Claims about the worker side: who can be attached, sent to and heard."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from nodeserve.bus.sockets import open_socket
from nodeserve.dispatcher.sockets import Sockets
from nodeserve.dispatcher.worker_link import Worker, WorkerTable, node_ready
from nodeserve.errors import InvariantError, PeerError
from nodeserve.wire import control
from nodeserve.wire.control import AttachWorker, WorkerReady
from nodeserve.wire.engine_core import ABORT, identity_of
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import (
    FIELDS,
    PROBE,
    WITHIN_S,
    FakeEngine,
    Inbox,
    encode,
    running_node,
    spec_in,
)


def attach(generation: int, ready: bytes | None = None, max_model_len: int = 100) -> AttachWorker:
    return AttachWorker(
        name=f"w{generation}",
        generation=generation,
        role=Role.AGGREGATED,
        ready=WorkerReady(
            name=f"w{generation}",
            generation=generation,
            fields=FIELDS,
            ready=encode({"num_gpu_blocks": 10, "max_model_len": 5}) if ready is None else ready,
            block_size=16,
            num_gpu_blocks=10,
            kv_block_bytes=1,
            max_model_len=max_model_len,
        ),
    )


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


async def test_engine_that_says_hello_is_attached_and_can_be_sent_to(
    context, tmp_path: Path
) -> None:
    attached: asyncio.Queue[Worker] = asyncio.Queue()
    address = f"ipc://{tmp_path}/i"
    table = WorkerTable(Sockets(spec_in(tmp_path)), attached.put_nowait)
    with pytest.raises(PeerError, match="w7 generation 7"):
        table.send(Worker(attach(7)), ABORT, b"", [])
    engine = open_socket(context, zmq.DEALER, identity=identity_of(7))
    engine.connect(address)
    inbox = Inbox(engine)
    engine.send(encode({"ready": 1}))
    table.attach(attach(7))
    async with asyncio.timeout(WITHIN_S):
        worker = await attached.get()
    table.send(worker, ABORT, b"payload", [b"aux"])
    frames = await inbox.next()
    assert (await inbox.next() if frames == PROBE else frames) == [ABORT, b"payload", b"aux"]
    inbox.reader.close()
    table.close()


async def test_engine_that_said_hello_to_an_earlier_dispatcher_is_found_once_it_is_back(
    context, tmp_path: Path
) -> None:
    attached: asyncio.Queue[Worker] = asyncio.Queue()
    address = f"ipc://{tmp_path}/i"
    table = WorkerTable(Sockets(spec_in(tmp_path)), attached.put_nowait)
    table.attach(attach(7))
    table.attach(attach(8))
    table.retire(8)
    assert table.attached == {}
    engines = [open_socket(context, zmq.DEALER, identity=identity_of(n)) for n in (7, 8)]
    for engine in reversed(engines):
        engine.connect(address)
    inbox = Inbox(engines[0])
    async with asyncio.timeout(WITHIN_S):
        assert (await attached.get()).generation == 7
    assert await inbox.next() == PROBE
    assert list(table.attached) == [7]
    inbox.reader.close()
    engines[1].close()
    table.close()


async def test_generation_is_never_used_twice(tmp_path: Path) -> None:
    table = WorkerTable(Sockets(spec_in(tmp_path)), lambda _: None)
    table.attach(attach(7))
    with pytest.raises(InvariantError, match="generation 7 was attached before"):
        table.attach(attach(7))
    table.retire(7)
    with pytest.raises(InvariantError, match="generation 7 was attached before"):
        table.attach(attach(7))
    table.close()


async def test_worker_with_a_garbage_ready_response_is_refused(tmp_path: Path) -> None:
    table = WorkerTable(Sockets(spec_in(tmp_path)), lambda _: None)
    with pytest.raises(PeerError, match="restart it"):
        table.attach(attach(7, ready=b"\xc1"))
    table.close()


async def test_garbage_hellos_are_counted_and_the_next_one_is_fine(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        strangers = []
        for identity in (b"abc", b"\1\1"):
            stranger = open_socket(node.context, zmq.DEALER, identity=identity)
            stranger.connect(node.spec.input_address)
            stranger.send(b"\xc1")
            strangers.append(stranger)
        await node.status_with(lambda status: status.rejected_frames == 2)
        await node.engine(10, Role.AGGREGATED)


async def test_worker_of_another_vllm_version_is_refused_and_reported(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await node.engine(10, Role.AGGREGATED)
        other = attach(11)
        fields = msgspec.structs.replace(FIELDS, vllm_version="0.33.0")
        ready = msgspec.structs.replace(other.ready, fields=fields)
        node.tell(msgspec.structs.replace(other, ready=ready))
        node.tell(control.AttachWorker(name="w", generation=12, role=Role.DECODE, ready=ready))
        assert [load.generation for load in (await node.status()).workers] == [10]
        reason = (
            "its wire is that of vLLM 0.33.0, the node's that of 0.32.0; restart the whole node"
        )
        for generation in (11, 12):
            await node.told(control.WorkerGivenUp(generation=generation, reason=reason))


async def test_garbage_ready_response_is_reported_and_a_second_attach_is_not(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        node.attach_worker(engine)
        node.tell(attach(11, ready=b"\xc1"))
        heard = await node.hear()
        assert isinstance(heard, control.WorkerGivenUp)
        assert (heard.generation, "restart it" in heard.reason) == (11, True)
        assert [load.generation for load in (await node.status()).workers] == [10]


def test_node_is_as_long_as_its_shortest_worker_and_as_large_as_all() -> None:
    ready = node_ready([Worker(attach(1, max_model_len=9)), Worker(attach(2, max_model_len=4))])
    assert ready == {
        "num_gpu_blocks": 20,
        "max_model_len": 4,
        "data_parallel_size": 1,
        "data_parallel_rank": 0,
    }


@pytest.mark.parametrize("told_by", ["a drain", "its attachment"])
async def test_worker_whose_drain_came_before_its_engine_gets_nothing(
    tmp_path: Path, told_by: str
) -> None:
    async with running_node(tmp_path) as node:
        engine = FakeEngine(node, 10, Role.AGGREGATED)
        node.tell(msgspec.structs.replace(attach(10), draining=told_by == "its attachment"))
        if told_by == "a drain":
            node.tell(control.DrainWorker(generation=10))
        assert (await node.status()).workers == ()
        engine.input.send(encode(engine.ready))
        await node.told(control.WorkerServing(generation=10))
        await node.told(control.WorkerDrained(generation=10))
        other = await node.engine(11, Role.AGGREGATED)
        gateway = await node.gateway(20)
        for name in ("a", "b"):
            gateway.add(name)
            await other.leg()


async def test_role_that_came_before_the_engine_is_the_workers(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = FakeEngine(node, 10, Role.PREFILL)
        node.tell(attach(10))
        node.tell(control.SetWorkerRole(generation=10, role=Role.DECODE))
        assert (await node.status()).workers == ()
        engine.input.send(encode(engine.ready))
        await node.told(control.WorkerServing(generation=10))
        (worker,) = (await node.status()).workers
        assert worker.role is Role.DECODE
