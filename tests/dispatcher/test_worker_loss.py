"""Claims about workers that die, at each stage of a request."""

from pathlib import Path

from nodeserve.errors import PeerError
from nodeserve.wire import control
from nodeserve.wire.engine_core import RESUMED, identity_of
from nodeserve.wire.kinds import HANDOFF, RESUME, Role
from tests.dispatcher.fakes import (
    PROBE,
    FakeEngine,
    FakeNode,
    handed_over,
    of,
    output,
    pair,
    running_node,
)
from tests.dispatcher.streaming import tokens

ABORT, ERROR = 2, 3


async def test_worker_lost_while_prefilling_is_replaced_by_another(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first, decoder, gateway = await pair(node)
        gateway.add("a")
        old_leg, fields = await first.leg()
        second = await node.engine(12, Role.PREFILL)
        node.tell(control.DetachWorker(generation=10, reason="killed"))
        new_leg, again = await second.leg()
        assert new_leg != old_leg
        assert again[1:] == fields[1:]
        first.handoff(old_leg)  # a thawed worker still speaks
        await node.status_with(lambda status: status.stale_outputs == 1)
        second.handoff(new_leg, lease_id=2)
        leg_id, _ = await decoder.leg()
        decoder.say(output(leg_id, [1], finish_reason=0))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]


async def test_worker_lost_while_decoding_is_an_error_and_its_late_outputs_are_stale(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        leg_id = await handed_over(prefill, decoder, gateway, "a")
        decoder.say(output(leg_id, [1]))
        await gateway.outputs()
        node.tell(control.DetachWorker(generation=11, reason="killed"))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "finish_reason")) == (["a", []], ERROR)
        decoder.say(output(leg_id, [2]), output(leg_id, [3]))
        status = await node.status_with(lambda status: status.stale_outputs > 0)
        assert (status.stale_outputs, status.failed_requests) == (2, 1)


async def test_answer_goes_on_at_another_worker_behind_what_was_sent(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        gateway.add("a", temperature=0.5)
        leg_id, asked = await first.leg()
        begun = {"num_prompt_tokens": 10, "num_cached_tokens": 4}
        first.say(output(leg_id, [1], prefill_stats=begun))
        first.say(output(leg_id, [2, 3]))
        assert await tokens(gateway, 3) == [1, 2, 3]
        second = await able_engine(node, 11)
        node.tell(control.DetachWorker(generation=10, reason="killed"))
        new_leg, again = await second.leg()
        assert again[3] == asked[3] | {"extra_args": {RESUMED: [1, 2, 3]}}
        assert (again[1], again[3]["max_tokens"]) == (asked[1], 8)
        first.say(output(leg_id, [666]))
        await node.status_with(lambda status: status.stale_outputs == 1)
        events = [{"type": 1, "timestamp": 1.0}]
        again_begun = {"num_prompt_tokens": 10, "num_cached_tokens": 0}
        second.say(output(new_leg, [4], prefill_stats=again_begun, events=events))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "prefill_stats"), of(row, "events")) == (["a", [4]], None, None)
        second.say(output(new_leg, [5], finish_reason=1))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [5]]]
        status = await node.status_with(lambda status: status.finished_requests == 1)
        assert (status.resumed_requests, status.failed_requests) == (1, 0)
        (trace,) = status.recent
        assert (trace.output_tokens, trace.cached_tokens, trace.resumed) == (5, 4, 1)


async def test_answer_with_the_prompts_logprobs_is_not_begun_twice(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        gateway.add("a", prompt_logprobs=1)
        leg_id, _ = await first.leg()
        first.say(output(leg_id, [1]))
        await gateway.outputs()
        await able_engine(node, 11)
        node.tell(control.DetachWorker(generation=10, reason="killed"))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "finish_reason")) == (["a", []], ERROR)


async def test_engine_that_aborts_unasked_is_fenced_and_its_requests_go_on(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        for wire_id in "abc":
            gateway.add(wire_id)
        legs = [(await first.leg())[0] for _ in range(3)]
        first.say(output(legs[0], [1]), output(legs[1], [2]))
        await gateway.outputs()
        second = await able_engine(node, 11)
        first.say(*[output(leg_id, [], finish_reason=ABORT) for leg_id in legs])
        again = [(await second.leg())[1] for _ in range(3)]
        resumed = [(fields[3].get("extra_args") or {}).get(RESUMED) for fields in again]
        assert resumed == [[1], [2], None]
        second.say(*[output(fields[0], [3], finish_reason=1) for fields in again])
        rows = await gateway.outputs()
        assert [row[:2] for row in rows] == [["a", [3]], ["b", [3]], ["c", [3]]]
        given_up = await node.hear()
        while not isinstance(given_up, control.WorkerGivenUp):
            given_up = await node.hear()
        assert (given_up.generation, "nobody has aborted" in given_up.reason) == (10, True)
        status = await node.status_with(lambda status: status.finished_requests == 3)
        assert (status.stale_outputs, status.failed_requests, status.aborted_requests) == (0, 0, 0)


async def test_prefill_engine_that_aborts_unasked_is_fenced_too(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, _, gateway = await pair(node)
        gateway.add("a")
        leg_id, _ = await prefill.leg()
        second = await node.engine(12, Role.PREFILL)
        prefill.say(output(leg_id, [], finish_reason=ABORT))
        assert (await second.leg())[1][1] == list(range(10))


async def test_request_that_has_lost_three_workers_is_failed_and_remembered(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engines = [await able_engine(node, generation) for generation in (10, 11, 12, 13)]
        gateway = await node.gateway(20)
        gateway.add("a")
        for engine in engines[:3]:
            await engine.leg()
            node.tell(control.DetachWorker(generation=engine.generation, reason="killed"))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "finish_reason")) == (["a", []], ERROR)
        status = await node.status_with(lambda status: status.failed_requests == 1)
        (trace,) = status.recent
        assert trace.error is not None
        assert "3 workers died under it" in trace.error


async def able_engine(node: FakeNode, generation: int) -> FakeEngine:
    engine = FakeEngine(node, generation, Role.AGGREGATED)
    engine.features = (HANDOFF, RESUME)
    await engine.attach()
    return engine


async def vanish(node: FakeNode, engine: FakeEngine) -> None:
    """Return when the engine's sockets are closed and the dispatcher's end has noticed."""
    workers = node.dispatcher.workers
    engine.vanish()
    while True:  # bounded by the test's timeout
        try:
            workers.send(workers.attached[engine.generation], PROBE[0], PROBE[1], [])
        except PeerError:
            return
        await node.status()


async def test_worker_that_vanished_before_the_supervisor_knows_is_replaced(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        first = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        second = await node.engine(11, Role.AGGREGATED)
        third = await node.engine(12, Role.AGGREGATED)
        await vanish(node, first)
        await vanish(node, second)
        for wire_id in ("a", "b", "c"):
            gateway.add(wire_id)
        assert [(await third.leg())[1][3] for _ in range(3)] == [{"max_tokens": 8}] * 3
        for engine in (first, second):
            given_up = await node.hear()
            assert isinstance(given_up, control.WorkerGivenUp)
            assert f"worker {engine.name} generation {engine.generation}" in given_up.reason


async def test_one_worker_cannot_speak_for_anothers_leg(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        leg_id = await handed_over(prefill, decoder, gateway, "a")
        prefill.say(output(leg_id, [666], finish_reason=0))
        prefill.say(output(leg_id, [666]), stats={"x": 1})
        await node.status_with(lambda status: status.rejected_frames == 1)
        decoder.say(output(leg_id, [1]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]


async def test_worker_given_up_over_one_output_of_a_step_says_nothing_more_with_the_others(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine = FakeEngine(node, 10, Role.AGGREGATED)
        engine.ready |= {"max_num_seqs": 2}
        await engine.attach()
        gateway = await node.gateway(20)
        for name in "abc":
            gateway.add(name)
        leg_a, _ = await engine.leg()
        leg_b, _ = await engine.leg()
        engine.inbox.reader.close()  # the end of "a" starts "c" there, which cannot be sent
        while can_be_sent_to(node, engine):
            await node.status()
        engine.say(output(leg_a, [1], finish_reason=0), output(leg_b, [2], finish_reason=0))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]
        second = await node.engine(11, Role.AGGREGATED)
        for token in (3, 4):
            leg_id, _ = await second.leg()
            second.say(output(leg_id, [token], finish_reason=0))
            assert [row[:2] for row in await gateway.outputs()] == [["bc"[token - 3], [token]]]
        assert (await node.status()).running_requests == 0


def can_be_sent_to(node: FakeNode, engine: FakeEngine) -> bool:
    """Tell whether the dispatcher has not noticed yet that nobody listens."""
    try:
        node.dispatcher.workers._port.send([identity_of(engine.generation), *PROBE])
    except PeerError:
        return False
    return True
