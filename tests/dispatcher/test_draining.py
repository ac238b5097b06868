"""Claims about a draining worker's requests, from the gateway's side."""

from pathlib import Path

from nodeserve.wire import control
from nodeserve.wire.engine_core import RESUMED
from tests.dispatcher.fakes import output, running_node
from tests.dispatcher.streaming import tokens
from tests.dispatcher.test_worker_loss import able_engine


async def test_answer_moves_to_another_worker_behind_what_was_sent(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        gateway.add("a", max_tokens=100)
        leg_id, asked = await first.leg()
        first.say(output(leg_id, [1]))
        first.say(output(leg_id, [2, 3]))
        assert await tokens(gateway, 3) == [1, 2, 3]
        second = await able_engine(node, 11)
        node.tell(control.DrainWorker(generation=10))
        assert await first.aborted() == [leg_id]
        new_leg, again = await second.leg()
        assert again[3] == asked[3] | {"extra_args": {RESUMED: [1, 2, 3]}}
        await node.told(control.WorkerDrained(generation=10))
        first.say(output(leg_id, [666]))  # its step was under way
        await node.status_with(lambda status: status.stale_outputs == 1)
        second.say(output(new_leg, [4]))
        second.say(output(new_leg, [5], finish_reason=1))
        assert await tokens(gateway, 2) == [4, 5]
        status = await node.status_with(lambda status: status.finished_requests == 1)
        assert (status.resumed_requests, status.failed_requests) == (1, 0)
        assert status.recent[0].output_tokens == 5


async def test_answers_are_counted_as_they_grow_while_a_worker_drains(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        first = await able_engine(node, 10)
        gateway = await node.gateway(20)
        gateway.add("a", max_tokens=100)
        leg_id, _ = await first.leg()
        node.tell(control.DrainWorker(generation=10))  # nobody else is there
        first.say(output(leg_id, [1]))
        first.say(output(leg_id, list(range(90))))
        await gateway.outputs()
        await gateway.outputs()
        node.dispatcher.tick()
        await able_engine(node, 11)
        # With nine tokens left it is not worth the prompt: it stays.
        first.say(output(leg_id, [7], finish_reason=0))
        (row,) = await gateway.outputs()
        assert row[:2] == ["a", [7]]
        await node.told(control.WorkerDrained(generation=10))
