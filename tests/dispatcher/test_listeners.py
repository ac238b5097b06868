"""Claims about listeners as tenants, through the dispatcher's own sockets."""

from pathlib import Path

from nodeserve.wire import control
from nodeserve.wire.engine_outputs import ERROR
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import FakeEngine, FakeNode, of, output, pair, running_node
from tests.dispatcher.streaming import tokens


def listeners(status) -> dict[str, tuple[int, ...]]:
    return {
        one.name.removeprefix("listener-"): (one.running, one.queued, one.refused, one.expired)
        for one in status.listeners
    }


async def small_engine(node: FakeNode):
    """Return an attached engine that runs one request at a time."""
    engine = FakeEngine(node, 10, Role.AGGREGATED)
    engine.ready["max_num_seqs"] = 1
    await engine.attach()
    return engine


async def test_a_late_tenant_passes_the_flood_of_an_early_one(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await small_engine(node)
        batch, chat = await node.gateway(20), await node.gateway(21)
        for number in range(50):
            batch.add(f"b{number}")
        leg_id, _ = await engine.leg()
        await node.status_with(lambda s: s.queued_requests == 49)
        chat.add("c0")
        await node.status_with(lambda s: s.queued_requests == 50)
        engine.say(output(leg_id, [1], finish_reason=1))
        (row,) = await batch.outputs()
        assert row[0] == "b0"
        leg_id, _ = await engine.leg()
        engine.say(output(leg_id, [2], finish_reason=1))
        (row,) = await chat.outputs()
        assert row[0] == "c0"
        assert listeners(await node.status()) == {"20": (1, 48, 0, 0), "21": (0, 0, 0, 0)}


async def test_who_waits_too_long_gets_an_error_and_no_leg(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await small_engine(node)
        patient = await node.gateway(20)
        hasty = await node.gateway(21, queue_timeout_s=0.05)
        patient.add("a")
        leg_id, _ = await engine.leg()
        hasty.add("b")
        (row,) = await hasty.outputs()
        assert (row[0], of(row, "finish_reason")) == ("b", ERROR)
        patient.add("c")
        engine.say(output(leg_id, [1], finish_reason=1))
        leg_id, _ = await engine.leg()
        assert leg_id.endswith("-3.1")
        assert listeners(await node.status()) == {"20": (1, 0, 0, 0), "21": (0, 0, 0, 1)}


async def test_a_listeners_limits_hold_on_a_node_with_room(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        batch = await node.gateway(20, max_running_requests=2, max_queued_requests=1)
        chat = await node.gateway(21)
        for name in "abcd":
            batch.add(name)
        (row,) = await batch.outputs()
        assert (row[0], of(row, "finish_reason")) == ("d", ERROR)
        chat.add("e")
        for _ in range(3):
            await engine.leg()
        assert listeners(await node.status()) == {"20": (2, 1, 1, 0), "21": (1, 0, 0, 0)}


async def test_gpu_time_is_charged_for_what_was_really_produced(tmp_path: Path) -> None:
    async with running_node(tmp_path, prompt_token_s=1.0, output_token_s=10.0) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a", list(range(10)), max_tokens=100)
        leg_id, _ = await engine.leg()
        (running,) = (await node.status()).listeners
        assert running.gpu_s == 10 + 10 * 100
        engine.say(output(leg_id, [1, 2, 3]))
        engine.say(output(leg_id, [4], finish_reason=0))
        ended = await node.status_with(lambda s: s.finished_requests == 1)
        assert ended.listeners[0].gpu_s == 10 + 10 * 4
        gateway.add("b", list(range(10)), max_tokens=100)
        leg_id, _ = await engine.leg()
        engine.say(output(leg_id, [1, 2]))
        assert await tokens(gateway, 6) == [1, 2, 3, 4, 1, 2]
        gateway.abort("b")
        ended = await node.status_with(lambda s: s.aborted_requests == 1)
        assert ended.listeners[0].gpu_s == 50 + 10 + 10 * 2


def transfer_params(fields) -> dict | None:
    return (fields[3].get("extra_args") or {}).get("kv_transfer_params")


async def test_engines_hear_whose_request_it_is_where_there_are_tiers(tmp_path: Path) -> None:
    async with running_node(tmp_path, names_listeners=True) as node:
        prefill, decoder, gateway = await pair(node)
        gateway.add("a")
        leg_id, fields = await prefill.leg()
        named = {"nodeserve_listener": "listener-20"}
        assert transfer_params(fields) == {"do_remote_decode": True, **named}
        handoff = prefill.handoff(leg_id)
        _, fields = await decoder.leg()
        assert transfer_params(fields) == {**handoff, **named}


async def test_engines_hear_nothing_of_listeners_where_there_are_none(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        _, fields = await engine.leg()
        assert transfer_params(fields) is None
        routing = control.SetRouting(
            local_prefill_tokens=16, max_queued_requests=9, names_listeners=True
        )
        node.tell(routing)
        await node.status()
        gateway.add("b")
        _, fields = await engine.leg()
        assert transfer_params(fields) == {"nodeserve_listener": "listener-20"}
