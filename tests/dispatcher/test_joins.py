"""Claims about several steps of one engine in one turn: what a gateway is sent of them."""

from pathlib import Path
from typing import Any

import pytest

from nodeserve.dispatcher.joins import MAX_TOKENS
from nodeserve.wire import control
from nodeserve.wire.engine_core import RESUMED
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import FakeGateway, FakeNode, decode, encode, of, output, running_node
from tests.dispatcher.streaming import stream
from tests.dispatcher.test_worker_loss import able_engine

LOGPROBS = [[["<i4", [1, 1], 3]], [["<f4", [1, 1], 3]], None, None]
STOP, LENGTH, ABORT, ERROR = range(4)


def step(node: FakeNode, *outputs: list[Any], engine: int = 10, rest: tuple[Any, ...] = ()) -> None:
    """Hand in one step's message; the turn goes on until ``flush``."""
    node.dispatcher.steps.take([encode([engine, outputs, None, 1.0, *rest])])


async def messages(node: FakeNode, gateway: FakeGateway, count: int) -> list[list[list[Any]]]:
    """End the turn; return the ids and tokens of each message, of which there are no more."""
    node.dispatcher.steps.flush()
    rows = [[row[:2] for row in await gateway.outputs()] for _ in range(count)]
    assert gateway.inbox.waiting.empty()
    return rows


async def test_steps_of_one_engine_in_one_turn_are_one_message_and_one_output_each(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        legs = {}
        engines = [await node.engine(number, Role.AGGREGATED) for number in (10, 11)]
        gateway = await node.gateway(20)
        for wire_id, engine in zip("ab", engines, strict=True):
            gateway.add(wire_id)
            legs[wire_id], _ = await engine.leg()
        turn = [(10, "a", 1), (11, "b", 2), (10, "a", 3), (10, "a", 4), (11, "b", 5), (10, "a", 6)]
        for number, wire_id, token in turn:
            step(node, output(legs[wire_id], [token]), engine=number)
        assert await messages(node, gateway, 1) == [[["a", [1, 3, 4, 6]], ["b", [2, 5]]]]
        step(node, output(legs["a"], [7]))
        assert await messages(node, gateway, 1) == [[["a", [7]]]]
        step(node, output(legs["a"], [8]))
        step(node, output(legs["a"], [9], finish_reason=STOP))
        assert await messages(node, gateway, 1) == [[["a", [8, 9]]]]
        (trace,) = (await node.status_with(lambda status: status.finished_requests == 1)).recent
        assert trace.output_tokens == 7


@pytest.mark.parametrize("row", [lambda leg, tokens: [leg, tokens], output])
async def test_streams_that_come_and_go_are_joined_as_far_as_they_go(
    tmp_path: Path, row: Any
) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        legs = []
        for wire_id in "abc":
            gateway.add(wire_id)
            legs.append((await engine.leg())[0])
        a, b, c = legs
        step(node, row(a, [1]))
        step(node, row(b, [2]), row(a, [3]), row("of-nobody", [0]))
        step(node, row(a, [4, 5]), row(c, [6]), row(b, [7]))
        step(node, row(c, [8]), row(b, []), row(c, [9]))
        expected = [["a", [1, 3, 4, 5]], ["b", [2, 7]], ["c", [6, 8, 9]]]
        assert [sorted(rows) for rows in await messages(node, gateway, 1)] == [expected]
        assert (await node.status()).stale_outputs == 1


async def test_first_output_keeps_its_statistics_when_others_join_it(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        begun = {"num_prompt_tokens": 10, "num_cached_tokens": 4}
        events = [{"type": 1, "timestamp": 1.0}, {"type": 2, "timestamp": 2.0}]
        step(node, output(leg_id, [1], prefill_stats=begun, events=events))
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, [3], finish_reason=STOP, stop_reason=3))
        node.dispatcher.steps.flush()
        (row,) = await gateway.outputs()
        assert row[:2] == ["a", [1, 2, 3]]
        assert (of(row, "prefill_stats"), of(row, "events")) == (begun, events)
        assert (of(row, "finish_reason"), of(row, "stop_reason")) == (STOP, 3)
        status = await node.status_with(lambda status: status.finished_requests == 1)
        assert (status.ttft.count, status.recent[0].output_tokens) == (1, 3)


async def test_end_joins_an_output_that_is_shorter(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        step(node, [leg_id, [2]])
        step(node, [leg_id, [3], None, None, None, LENGTH, None, None, {"secret": 1}])
        node.dispatcher.steps.flush()
        assert await gateway.outputs() == [["a", [2, 3], None, None, None, LENGTH, None]]


@pytest.mark.parametrize(
    "field",
    [
        *("new_logprobs", "new_prompt_logprobs_tensors", "pooling_output", "trace_headers"),
        *("routed_experts", "num_nans_in_logits", "new_sampling_mask", "ec_transfer_params"),
    ],
)
async def test_what_belongs_to_single_tokens_is_not_joined(tmp_path: Path, field: str) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        special = {field: 1 if field == "num_nans_in_logits" else LOGPROBS}
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, [3], **special))
        step(node, output(leg_id, [4], **special))
        step(node, output(leg_id, [5]))
        step(node, output(leg_id, [6]))
        step(node, output(leg_id, [7], finish_reason=LENGTH, **special))
        node.dispatcher.steps.flush()
        rows = [row for _ in range(5) for row in await gateway.outputs()]
        assert [row[1] for row in rows] == [[2], [3], [4], [5, 6], [7]]
        default = 0 if field == "num_nans_in_logits" else None
        has_it = [of(row, field) != default for row in rows]
        assert has_it == [False, True, True, False, True]
        assert [of(row, "finish_reason") for row in rows] == [None, None, None, None, LENGTH]


@pytest.mark.parametrize("field", ["events", "prefill_stats"])
async def test_later_output_that_tells_more_is_not_joined(tmp_path: Path, field: str) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, [3], **{field: [{"type": 3, "timestamp": 1.0}]}))
        step(node, output(leg_id, [4]))
        assert await messages(node, gateway, 2) == [[["a", [2]]], [["a", [3, 4]]]]


@pytest.mark.parametrize(
    ("tokens", "finish"), [([], STOP), ([], LENGTH), ([3], ERROR), ([], ERROR)]
)
async def test_end_that_would_take_tokens_away_is_not_joined(
    tmp_path: Path, tokens: list[int], finish: int
) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, tokens, finish_reason=finish))
        assert await messages(node, gateway, 2) == [[["a", [2]]], [["a", tokens]]]


async def test_request_that_cannot_join_leaves_its_neighbours_in_order(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, a = await stream(node)
        gateway.add("b")
        b, _ = await engine.leg()
        for number in range(3):
            step(
                node,
                output(b, [20 + number], new_logprobs=LOGPROBS),
                output(a, [10 + number]),
            )
        expected = [[["a", [10, 11]], ["b", [20]]], [["a", [12]], ["b", [21]]], [["b", [22]]]]
        assert [sorted(rows) for rows in await messages(node, gateway, 3)] == expected


async def test_outputs_join_up_to_a_number_of_tokens(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        sent = list(range(2 * MAX_TOKENS + 3))
        for token in sent:
            step(node, output(leg_id, [token]))
        rows = await messages(node, gateway, 3)
        lengths = [len(row[1]) for message in rows for row in message]
        assert lengths == [MAX_TOKENS, MAX_TOKENS, 3]
        assert [token for message in rows for row in message for token in row[1]] == sent


async def test_each_gateway_gets_its_own_request_of_a_name_joined(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateways = [await node.gateway(20), await node.gateway(21)]
        legs = []
        for gateway in gateways:
            gateway.add("same")
            legs.append((await engine.leg())[0])
        one, two = legs
        step(node, output(one, [1]), output(two, [2]))
        step(node, output(two, [3]))
        step(node, output(two, [4], new_logprobs=LOGPROBS), output(one, [5]))
        first = await messages(node, gateways[0], 1)
        second = await messages(node, gateways[1], 2)
        assert first == [[["same", [1, 5]]]]
        assert second == [[["same", [2, 3]]], [["same", [4]]]]


async def test_steps_of_two_weight_versions_are_two_messages(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        for token, version in ((2, "one"), (3, "one"), (4, "two"), (5, "two")):
            step(node, output(leg_id, [token]), rest=(None, ["ended"], None, None, version))
        node.dispatcher.steps.flush()
        seen = [decode((await gateway.inbox.next())[0]) for _ in range(2)]
        assert [(message[1][0][1], message[-1]) for message in seen] == [
            ([2, 3], "one"),
            ([4, 5], "two"),
        ]


@pytest.mark.parametrize("bad", [[5], [None], [[]], [[["unhashable"], [1]]], [["of-nobody", 7]]])
async def test_bad_output_of_a_further_step_costs_its_neighbours_nothing(
    tmp_path: Path, bad: list[Any]
) -> None:
    async with running_node(tmp_path) as node:
        _, gateway, leg_id = await stream(node)
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, [3]), *bad, output(leg_id, [4]), [leg_id, "text"], [leg_id, 5])
        assert await messages(node, gateway, 1) == [[["a", [2, 3, 4]]]]


async def test_worker_given_up_within_a_turn_loses_no_token_that_was_joined(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        gateway.add("a", max_tokens=100)
        leg_id, _ = await first.leg()
        second = await able_engine(node, 11)
        step(node, output(leg_id, [1]))
        step(node, output(leg_id, [2]))
        step(node, output(leg_id, [3]), output(leg_id, [], finish_reason=ABORT))
        step(node, output(leg_id, [666]))  # it is fenced
        new_leg, again = await second.leg()
        assert again[3]["extra_args"] == {RESUMED: [1, 2, 3]}
        step(node, output(new_leg, [4]), engine=11)
        step(node, output(new_leg, [5]), engine=11)
        node.dispatcher.steps.flush()
        rows = await gateway.outputs()
        assert [token for row in rows for token in row[1]] == [1, 2, 3, 4, 5]
        assert {row[0] for row in rows} == {"a"}
        assert (await node.status()).stale_outputs == 1


async def test_gateway_that_is_gone_within_a_turn_is_sent_nothing_more(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine, gateway, leg_id = await stream(node)
        other = await node.gateway(21)
        other.add("b")
        leg_b, _ = await engine.leg()
        step(node, output(leg_id, [2]), output(leg_b, [3]))
        step(node, output(leg_id, [4]), output(leg_b, [5]))
        node.dispatcher.obey(control.DetachGateway(generation=20))
        step(node, output(leg_id, [6]), output(leg_b, [7]))
        assert await messages(node, other, 1) == [[["b", [3, 5, 7]]]]
        assert gateway.inbox.waiting.empty()
        assert (await node.status()).stale_outputs == 1
