"""Claims about the engines' messages that misbehave, and about mixed ones."""

from pathlib import Path
from typing import Any

import pytest
import zmq

from nodeserve.bus.sockets import open_socket
from nodeserve.dispatcher.sockets import EnginesSocket
from nodeserve.ids import Generation
from nodeserve.router.messages import WorkerLost
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import decode, encode, of, output, running_node, stats
from tests.dispatcher.streaming import stream

GARBAGE = [
    b"",
    b"\xc1",
    b"\x91" * 50_000,
    b"\xdd\xff\xff\xff\xff",
    b"\x81\x81\x01\x01\x01",
    encode({"engine_index": 10}),
    encode([10]),
    encode(["10", []]),
    encode([10, {}]),
]
BAD_OUTPUTS: list[Any] = [
    [5],
    [None],
    [[]],
    [[["unhashable"], [1]]],
    [{0: "of-nobody"}],
    [[{"a": 1}, [1]]],
]


async def test_garbage_from_an_engine_is_counted_and_its_next_step_is_fine(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        for frame in GARBAGE:
            engine.push.send(frame)
        engine.push.send(b"ENGINE_CORE_DEAD")
        engine.say(output(leg_id, [2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [2]]]
        assert (await node.status()).rejected_frames == len(GARBAGE)


async def test_truncated_step_never_stops_the_dispatcher(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        whole = encode([10, [output("other", [1])], stats(), 1.0])
        for end in range(len(whole)):
            engine.push.send(whole[:end])
        engine.say(output(leg_id, [2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [2]]]


@pytest.mark.parametrize("bad", BAD_OUTPUTS)
async def test_bad_output_does_not_cost_its_neighbours_their_tokens(
    tmp_path: Path, bad: list[Any]
) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        engine.say(output(leg_id, [2]), *bad, output(leg_id, [3]))
        rows = await gateway.outputs()
        assert [row[:2] for row in rows] == [["a", [2]], ["a", [3]]]
        assert (await node.status()).rejected_frames == 1


async def test_first_output_of_another_type_is_rejected(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        engine.say([leg_id], [leg_id, "text"], output(leg_id, [1], finish_reason="x"))
        engine.say(output(leg_id, [1], prefill_stats=5, events=5))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]
        assert (await node.status()).rejected_frames == 3


async def test_frame_larger_than_the_limit_costs_only_its_own_connection(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        port = node.dispatcher.workers._port
        assert isinstance(port, EnginesSocket)
        port._sock.setsockopt(zmq.MAXMSGSIZE, 100)
        huge = open_socket(node.context, zmq.DEALER, identity=b"\7\7")
        huge.connect(node.spec.input_address)
        huge.send(b"x" * 1000)
        engine.say(output(leg_id, [2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [2]]]


async def test_outputs_of_generations_never_attached_are_stale(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        engine.say(output(leg_id, [666]), output(leg_id, [667]), index=99)
        engine.say(output(leg_id, [2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [2]]]
        assert (await node.status()).stale_outputs == 2


async def test_legs_of_an_earlier_dispatcher_are_aborted_once_and_ours_are_only_counted(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        ours = output("d1-99.1", [7])
        ended = output("d0-8.1", [7], finish_reason=0)
        engine.say(output("d0-9.1", [1]), ours, ended, output("d12-9.2", [1]))
        assert await engine.aborted() == ["d0-9.1", "d12-9.2"]
        engine.say(output("d0-9.1", [2]), ours, output(leg_id, [2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [2]]]
        gateway.abort("a")
        assert await engine.aborted() == [leg_id]
        assert (await node.status()).stale_outputs == 6


async def test_short_arrays_are_enough(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        engine.push.send(encode([10, [[leg_id, [2]]]]))
        assert await gateway.outputs() == [["a", [2]]]
        engine.push.send(encode([10, [[leg_id, [3], None, None, None, 1]], None, 2.0]))
        assert await gateway.outputs() == [["a", [3], None, None, None, 1]]


async def test_one_step_brings_beginning_middle_and_end_of_many_streams(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        legs = {}
        for wire_id in "abc":
            gateway.add(wire_id)
            legs[wire_id], _ = await engine.leg()
        engine.say(output(legs["a"], [1]), output(legs["b"], [2]))
        await gateway.outputs()
        engine.say(
            output(legs["a"], [3], finish_reason=0, stop_reason="x"),
            output(legs["b"], [4]),
            output(legs["c"], [5]),
            output("nobody", [6]),
        )
        rows = {row[0]: row for row in await gateway.outputs()}
        assert {wire_id: row[1] for wire_id, row in rows.items()} == {"a": [3], "b": [4], "c": [5]}
        assert of(rows["a"], "stop_reason") == "x"


async def test_steps_of_several_engines_in_one_turn_are_one_message(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        gateway_legs = {}
        engines = [await node.engine(number, Role.AGGREGATED) for number in (10, 11)]
        gateway = await node.gateway(20)
        for wire_id, engine in zip("ab", engines, strict=True):
            gateway.add(wire_id)
            gateway_legs[wire_id], _ = await engine.leg()
        steps = node.dispatcher.steps
        for number, wire_id, token in ((10, "a", 1), (11, "b", 2)):
            steps.take([encode([number, [output(gateway_legs[wire_id], [token])], None, 1.0])])
        steps.flush()
        steps.flush()
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]], ["b", [2]]]


async def test_tensor_frames_go_with_their_own_step_only(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        steps = node.dispatcher.steps
        for token, frames in ((2, []), (3, [b"tensor"]), (4, [])):
            steps.take([encode([10, [output(leg_id, [token])], None, 1.0]), *frames])
        steps.flush()
        seen = []
        for _ in range(3):
            first, *aux = await gateway.inbox.next()
            seen.append((decode(first)[1][0][1], aux))
        assert seen == [([2], []), ([3], [b"tensor"]), ([4], [])]


async def test_error_of_a_request_comes_behind_its_tokens(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        steps = node.dispatcher.steps
        steps.take([encode([10, [output(leg_id, [2])], None, 1.0])])
        node.dispatcher.desk.tell(WorkerLost(Generation(10)))
        steps.flush()
        tokens, error = await gateway.outputs()
        assert (tokens[1], of(error, "finish_reason")) == ([2], 3)
