"""Claims about KV events, published over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.dispatcher.kv_events import KvEventFeed
from nodeserve.dispatcher.sockets import Sockets
from nodeserve.ids import Generation
from nodeserve.kv.block_hash import hash_blocks
from nodeserve.router.messages import BlocksRemoved, BlocksStored, Command, Event
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import BLOCK_SIZE, WITHIN_S, FakeEngine, encode, running_node, spec_in

TOKENS = list(range(12))
HASHES = hash_blocks(TOKENS, BLOCK_SIZE)
WORKER = Generation(7)


def stored(
    hashes: list[int], tokens: list[int], parent: int | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    } | more


def removed(*hashes: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"}


class Publisher:
    """An engine's side of the feed, and what came out of ours."""

    def __init__(self, sock: "zmq.Socket[bytes]", feed: KvEventFeed) -> None:
        self.sock = sock
        self.feed = feed
        self.sequence = 0

    def publish(self, *events: dict[str, Any], sequence: int | None = None) -> None:
        if sequence is not None:
            self.sequence = sequence
        frame = self.sequence.to_bytes(8, "big")
        self.sock.send_multipart([b"", frame, encode([1.0, events, 0])])
        self.sequence += 1


@asynccontextmanager
async def feed(directory: Path) -> AsyncIterator[tuple[Publisher, "asyncio.Queue[Event]"]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    events: asyncio.Queue[Event] = asyncio.Queue()
    sock = open_socket(context, zmq.XPUB)
    bind(sock, f"ipc://{directory}/kv")
    ports = Sockets(spec_in(directory))
    listening = KvEventFeed(ports, f"ipc://{directory}/kv", WORKER, 100, events.put_nowait)
    assert sock.poll(WITHIN_S * 1000)  # its subscription has come
    sock.recv()
    try:
        async with asyncio.timeout(WITHIN_S):
            yield Publisher(sock, listening), events
    finally:
        listening.close()
        ports.close()
        context.destroy(linger=0)


async def test_blocks_are_told_under_our_own_hashes(tmp_path: Path) -> None:
    async with feed(tmp_path) as (engine, events):
        engine.publish(stored([100, 101], TOKENS[:8]), stored([102], TOKENS[8:], parent=101))
        engine.publish(removed(102, 999), {"type": "AllBlocksCleared"})
        assert await events.get() == BlocksStored(WORKER, HASHES[:2])
        assert await events.get() == BlocksStored(WORKER, HASHES[2:])
        assert await events.get() == BlocksRemoved(WORKER, HASHES[2:])
        assert await events.get() == BlocksRemoved(WORKER, None)


async def test_other_tiers_and_groups_are_not_ours(tmp_path: Path) -> None:
    async with feed(tmp_path) as (engine, events):
        engine.publish(
            stored([100], TOKENS[:4], medium="CPU"),
            stored([101], TOKENS[:4], group_idx=1),
            stored([102], TOKENS[:4], group_idx=0),
        )
        assert await events.get() == BlocksStored(WORKER, HASHES[:1])
        assert events.empty()


async def test_lost_events_forget_the_worker(tmp_path: Path) -> None:
    async with feed(tmp_path) as (engine, events):
        engine.publish(stored([100], TOKENS[:4]), sequence=40)  # a late subscriber starts anywhere
        engine.publish(stored([101], TOKENS[4:8], parent=100), sequence=42)
        engine.publish(stored([100], TOKENS[:4]))
        assert await events.get() == BlocksStored(WORKER, HASHES[:1])
        assert await events.get() == BlocksRemoved(WORKER, None)
        assert await events.get() == BlocksStored(WORKER, HASHES[:1])
        assert engine.feed.num_gaps == 1


async def test_garbage_is_counted_and_the_next_event_is_fine(tmp_path: Path) -> None:
    async with feed(tmp_path) as (engine, events):
        for frames in ([b""], [b"", b"\0" * 8, b"\xc1"], [b"", b"\0" * 8, b"\x91" * 50_000]):
            engine.sock.send_multipart(frames)
        engine.publish(stored([100], TOKENS[:4]))
        assert await events.get() == BlocksStored(WORKER, HASHES[:1])
        assert engine.feed.num_rejected == 3


async def test_request_goes_where_its_prefix_is_cached(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engines = [FakeEngine(node, generation, Role.AGGREGATED) for generation in (10, 11)]
        publishers = []
        for engine in engines:
            address = f"ipc://{tmp_path}/kv{engine.generation}"
            sock = open_socket(node.context, zmq.XPUB)
            bind(sock, address)
            await engine.attach(address)
            assert sock.poll(WITHIN_S * 1000)
            publishers.append(sock)
        gateway = await node.gateway(20)
        seen = asyncio.Event()
        handle = node.dispatcher.router.handle

        def watch(event: Event, *, now_s: float) -> list[Command]:
            if isinstance(event, BlocksStored):
                seen.set()
            return handle(event, now_s=now_s)

        node.dispatcher.desk._router = type("Watched", (), {"handle": staticmethod(watch)})()
        for owner, wire_id in ((1, "a"), (0, "b")):
            seen.clear()
            prompt = list(range(1000 * owner, 1000 * owner + 80))
            event = stored(list(range(20)), prompt)
            publishers[owner].send_multipart([b"", b"\0" * 8, encode([1.0, [event], 0])])
            async with asyncio.timeout(WITHIN_S):
                await seen.wait()
            gateway.add(wire_id, [*prompt, 1, 2])
            leg_id, _ = await engines[owner].leg()
            engines[owner].say([leg_id, [1], None, None, None, 1])
            await gateway.outputs()
