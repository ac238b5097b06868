"""Claims about gateways that misbehave."""

from pathlib import Path

import pytest
import zmq

from nodeserve.bus.sockets import open_socket
from nodeserve.wire import control
from nodeserve.wire.engine_core import ABORT, ADD, UTILITY
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import encode, of, output, request, running_node

GARBAGE = [b"", b"\xc1", b"\x91" * 50_000, b"\xdb\xff\xff\xff\xff", encode({"a": 1})]


@pytest.mark.parametrize("kind", [ADD, ABORT, UTILITY, b"\x02", b"\x63", b"", b"longer"])
async def test_garbage_from_a_gateway_is_counted_and_its_next_request_is_fine(
    tmp_path: Path, kind: bytes
) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        for frame in GARBAGE:
            gateway.send(kind, frame)
        gateway.send(kind)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        engine.say(output(leg_id, [1]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]
        assert (await node.status()).rejected_frames == len(GARBAGE) + 1


async def test_request_that_cannot_be_read_ends_with_an_error_if_its_id_can(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        fields = request("a")
        fields[3] = "no parameters"
        gateway.send(ADD, encode(fields))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "finish_reason")) == (["a", []], 3)


async def test_truncated_requests_never_stop_the_gateway(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        whole = encode(request("cut"))
        for end in range(len(whole)):
            gateway.send(ADD, whole[:end])
        gateway.add("a")
        leg_id, _ = await engine.leg()
        engine.say(output(leg_id, [1]))
        await gateway.message(lambda message: [r for r in message[1] if r[:2] == ["a", [1]]])


async def test_gateway_that_does_not_read_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        stuck, other = await node.gateway(20), await node.gateway(21)
        stuck.inbox.reader.pause()
        stuck.add("a")
        leg_a, _ = await engine.leg()
        other.add("b")
        leg_b, _ = await engine.leg()
        link = node.dispatcher._gateways[20]
        block = list(range(2000))
        count = 0
        while not link.congested:
            engine.say(output(leg_a, block))
            count += 1
            assert count < 10_000
            if count % 50 == 0:
                await node.status()
        engine.say(output(leg_b, [1]))
        assert [row[:2] for row in await other.outputs()] == [["b", [1]]]
        assert await engine.aborted() == [leg_a]
        assert list(node.dispatcher._gateways) == [21]
        reason = "it has not read for 2 s"
        await node.told(control.GatewayGivenUp(generation=20, reason=reason))


async def test_engine_is_held_back_soon_when_a_gateway_does_not_read(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.inbox.reader.pause()
        gateway.add("a")
        leg_id, _ = await engine.leg()
        link = node.dispatcher._gateways[20]
        block, count = list(range(2000)), 0
        while not link.congested:
            engine.say(output(leg_id, block))
            count += 1
            if count % 50 == 0:
                await node.status()
        fast = open_socket(node.context, zmq.PUSH, high_water_messages=4)
        fast.connect(node.spec.output_address)
        message = encode([10, [output(leg_id, list(range(20_000)))], None, 1.0])
        count = 0
        while count < 1000 and fast.poll(100, zmq.POLLOUT):
            fast.send(message)
            count += 1
        assert 0 < count <= 128  # both marks, and what the kernel's buffers take
        fast.close(linger=0)


async def test_gateway_that_was_slow_gets_everything_in_order(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.inbox.reader.pause()
        gateway.add("a", max_tokens=500)
        leg_id, _ = await engine.leg()
        link = node.dispatcher._gateways[20]
        count = 0
        while not link.congested:
            engine.say(output(leg_id, [count] * 2000))
            count += 1
            assert count < 10_000
            if count % 50 == 0:
                await node.status()
        engine.say(output(leg_id, [count]))
        gateway.inbox.reader.resume()
        seen = [(await gateway.outputs())[0][1][0] for _ in range(count + 1)]
        assert seen == list(range(count + 1))


async def test_detached_gateway_can_be_followed_by_another(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        await node.gateway(20)
        node.tell(control.DetachGateway(generation=20))
        node.tell(control.DetachGateway(generation=99))
        second = await node.gateway(21)
        second.add("a")
        await engine.leg()
