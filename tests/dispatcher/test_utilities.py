"""Claims about utility calls, over real sockets."""

from pathlib import Path
from typing import Any

import pytest

from nodeserve.dispatcher.utilities import ALLOWED
from nodeserve.wire import control
from nodeserve.wire.engine_core import UTILITY
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import FakeEngine, FakeGateway, FakeNode, encode, running_node

BIG_CALL_ID = (1 << 64) - 3


async def test_answer_to_an_earlier_dispatchers_call_answers_none_of_ours(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "get_supported_tasks")
        number = await asked(one, "get_supported_tasks")
        for earlier in (1, 2, 3):
            one.answer(earlier, ["old"])
        one.answer(number, ["generate"])
        two.answer(await asked(two, "get_supported_tasks"), ["generate"])
        assert await gateway.answer() == [5, None, [None, ["generate"]]]


async def three(node: FakeNode) -> tuple[FakeEngine, FakeEngine, FakeGateway]:
    return (
        await node.engine(10, Role.PREFILL),
        await node.engine(11, Role.DECODE),
        await node.gateway(20),
    )


async def asked(engine: FakeEngine, method: str, *args: Any) -> int:
    call_id: int
    client, call_id, *rest = await engine.next(UTILITY)
    assert (client, rest) == (0, [method, list(args)])
    return call_id


async def result_of(node: FakeNode, method: str, *results: Any) -> list[Any]:
    one, two, gateway = await three(node)
    gateway.call(BIG_CALL_ID, method)
    for engine, result in zip((one, two), results, strict=True):
        engine.answer(await asked(engine, method), result)
    call_id, failure, value = await gateway.answer()
    assert call_id == BIG_CALL_ID
    return [failure, value]


@pytest.mark.parametrize(
    ("method", "results", "merged"),
    [
        ("get_supported_tasks", (["generate"], ["other"]), ["generate"]),
        ("reset_prefix_cache", (True, True), True),
        ("reset_prefix_cache", (True, False), False),
        ("add_lora", (True, True), True),
        ("is_sleeping", (False, False), False),
        ("reset_mm_cache", (None, None), None),
    ],
)
async def test_answers_of_all_workers_become_one(
    tmp_path: Path, method: str, results: tuple[Any, Any], merged: Any
) -> None:
    async with running_node(tmp_path) as node:
        assert await result_of(node, method, *results) == [None, [None, merged]]


async def test_workers_that_must_agree_and_do_not_are_a_failure(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        failure, value = await result_of(node, "is_sleeping", True, False)
        assert "workers differ" in failure
        assert value is None


async def test_failure_of_one_worker_is_the_answer(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "add_lora", ["l", 1, "/x"])
        one.answer(await asked(one, "add_lora", ["l", 1, "/x"]), None, failure="no such file")
        two.answer(await asked(two, "add_lora", ["l", 1, "/x"]), True)
        call_id, failure, _ = await gateway.answer()
        assert call_id == 5
        assert "worker prefill-10: no such file" in failure


async def test_silent_worker_does_not_hang_the_call(tmp_path: Path) -> None:
    async with running_node(tmp_path, utility_deadline_s=0.05) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "is_sleeping")
        late = await asked(one, "is_sleeping")
        two.answer(await asked(two, "is_sleeping"), False)
        _, failure, _ = await gateway.answer()
        assert "no answer from prefill-10 within 0.05 s" in failure
        one.answer(late, False)
        gateway.call(6, "is_sleeping")
        one.answer(await asked(one, "is_sleeping"), False)
        two.answer(await asked(two, "is_sleeping"), False)
        assert await gateway.answer() == [6, None, [None, False]]


async def test_worker_that_dies_leaves_the_answer_to_the_others(tmp_path: Path) -> None:
    async with running_node(tmp_path, utility_deadline_s=60.0) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "is_sleeping")
        two.answer(await asked(two, "is_sleeping"), False)
        await asked(one, "is_sleeping")
        node.tell(control.DetachWorker(generation=10, reason="killed"))
        assert await gateway.answer() == [5, None, [None, False]]


async def test_worker_that_is_gone_already_does_not_hang_the_call(tmp_path: Path) -> None:
    async with running_node(tmp_path, utility_deadline_s=0.05) as node:
        one, two, gateway = await three(node)
        one.vanish()
        gateway.call(5, "is_sleeping")
        two.answer(await asked(two, "is_sleeping"), False)
        call_id, *_ = await gateway.answer()
        assert call_id == 5


async def test_call_without_any_worker_fails(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        one, _, gateway = await three(node)
        del one
        for generation in (10, 11):
            node.tell(control.DetachWorker(generation=generation, reason="killed"))
        await node.status()
        gateway.call(5, "is_sleeping")
        _, failure, _ = await gateway.answer()
        assert "no worker is attached" in failure


@pytest.mark.parametrize(
    "method",
    [
        *("collective_rpc", "save_sharded_state", "save_tensorized_model", "sleep", "wake_up"),
        *("pause_scheduler", "profile", "execute_dummy_batch", "update_weights", "shutdown"),
        *("nodeserve_release", "nodeserve_kv_stats", "__class__", "", "x" * 10_000),
    ],
)
async def test_dangerous_call_is_refused_and_reaches_no_engine(tmp_path: Path, method: str) -> None:
    assert method not in ALLOWED
    async with running_node(tmp_path) as node:
        one, two, gateway = await three(node)
        gateway.call(5, method, "import os")
        call_id, failure, value = await gateway.answer()
        assert (call_id, value) == (5, None)
        assert "not allowed" in failure
        gateway.call(6, "is_sleeping")
        for engine in (one, two):
            engine.answer(await asked(engine, "is_sleeping"), False)
        assert (await gateway.answer())[0] == 6


async def test_worker_cannot_answer_for_another(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "is_sleeping")
        mine = await asked(one, "is_sleeping")
        theirs = await asked(two, "is_sleeping")
        one.answer(theirs, True)
        one.answer(mine, False)
        two.answer(theirs, False)
        assert await gateway.answer() == [5, None, [None, False]]


@pytest.mark.parametrize("answer", [5, [], ["x", None, None], [1, 5, None], [1, None, [1]]])
async def test_garbage_answer_is_counted(tmp_path: Path, answer: Any) -> None:
    async with running_node(tmp_path) as node:
        one, _, _ = await three(node)
        one.push.send(msg(answer))
        await node.status_with(lambda status: status.rejected_frames == 1)


def msg(answer: Any) -> bytes:
    return encode([10, [], None, 1.0, answer])


async def test_calls_of_a_gateway_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    async with running_node(tmp_path, utility_deadline_s=0.01) as node:
        one, two, gateway = await three(node)
        gateway.call(5, "is_sleeping")
        await asked(one, "is_sleeping")
        number = await asked(two, "is_sleeping")
        node.tell(control.DetachGateway(generation=20))
        two.answer(number, False)
        other = await node.gateway(21)
        other.call(6, "no_such")
        assert (await other.answer())[0] == 6
