"""Claims about engines' statistics on their way to the gateways."""

from pathlib import Path
from typing import Any

import pytest

from nodeserve.wire import control
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import decode, encode, output, running_node, stats
from tests.dispatcher.streaming import stream


async def test_gateway_gets_no_message_that_says_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        await node.engine(11, Role.AGGREGATED)
        node.tell(control.DetachWorker(generation=11, reason="gone"))
        await node.status()
        node.dispatcher.steps.loads.catch_up()
        gateway.add("a")
        leg_id, _ = await engine.leg()
        engine.say(output("of-nobody", [1]))
        engine.say(output(leg_id, [1]))
        assert decode((await gateway.inbox.next())[0])[1][0][:2] == ["a", [1]]


async def test_statistics_go_along_now_and_then_and_add_up(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        steps = node.dispatcher.steps
        looks = stats()["prefix_cache_stats"] | {"requests": 1, "queries": 10, "hits": 4}
        for number in range(100):
            said = stats(number, prefix_cache_stats=looks)
            steps.take([encode([10, [output(leg_id, [number])], said, 1.0])])
            steps.flush()
        queries = with_stats = 0
        running = None
        while queries < 1000 or running != 99:
            message = decode((await gateway.inbox.next())[0])
            if message[2] is not None:
                with_stats += 1
                queries += message[2]["prefix_cache_stats"]["queries"]
                running = message[2]["num_running_reqs"]
        assert queries == 1000
        assert with_stats < 20


async def test_equal_statistics_that_count_something_count_each_time(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, _, leg_id = await stream(node)
        steps = node.dispatcher.steps
        looks = stats()["prefix_cache_stats"] | {"requests": 1, "queries": 10, "hits": 4}
        for said in (stats(1), stats(1), *[stats(1, prefix_cache_stats=looks)] * 3, stats(1)):
            steps.take([encode([10, [output(leg_id, [1])], said, 1.0])])
        report = steps.loads.stats.report()
        assert report is not None
        assert report["prefix_cache_stats"]["queries"] == 30
        assert report["num_running_reqs"] == 1


async def test_node_gauges_reach_every_gateway_and_counters_just_one(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        one = await node.engine(10, Role.AGGREGATED)
        two = await node.engine(11, Role.AGGREGATED)
        gateways = [await node.gateway(20), await node.gateway(21)]
        looks = stats()["prefix_cache_stats"] | {"requests": 1, "queries": 10, "hits": 4}
        one.say(stats=stats(3, 1, 0.5))
        two.say(stats=stats(5, 0, 1.0, prefix_cache_stats=looks))
        queries = 0
        for gateway in gateways:

            def node_stats(message: list[Any]) -> Any:
                nonlocal queries
                queries += message[2]["prefix_cache_stats"]["queries"]
                return message[2] if message[2]["num_running_reqs"] == 8 else None

            seen = await gateway.message(node_stats)
            assert (seen["num_waiting_reqs"], seen["kv_cache_usage"]) == (1, 0.75)
        assert queries == 10
        node.tell(control.DetachWorker(generation=11, reason="gone"))
        one.say(stats=stats(3, 1, 0.5))
        for gateway in gateways:
            await gateway.message(lambda message: message[2]["num_running_reqs"] == 3)


@pytest.mark.parametrize("bad", [5, [1], {}, stats() | {"num_running_reqs": "x"}])
async def test_bad_statistics_do_not_cost_a_stream_its_tokens(tmp_path: Path, bad: Any) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        engine.say(output(leg_id, [2]), stats=bad)
        message = await gateway.message(lambda message: message if message[1] else None)
        assert (message[1][0][:2], message[2]) == (["a", [2]], None)
        assert (await node.status()).rejected_frames == 1
