"""Claims about a request's life through a running dispatcher, over real sockets."""

from pathlib import Path
from typing import Any

import pytest

from nodeserve.wire import control
from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import (
    FakeEngine,
    FakeGateway,
    decode,
    encode,
    handed_over,
    of,
    output,
    pair,
    request,
    running_node,
)

ERROR = 3


async def test_request_prefills_hands_over_and_decodes(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        gateway.add("chat-1", seed=3, stop=["x"], logprobs=2, structured_outputs={"json": "{}"})
        leg_id, fields = await prefill.leg()
        assert leg_id != "chat-1"
        assert fields[3] == {
            "max_tokens": 1,
            "seed": 3,
            "ignore_eos": True,
            "extra_args": {"kv_transfer_params": {"do_remote_decode": True}},
        }
        events = [{"type": 1, "timestamp": 1.0}, {"type": 2, "timestamp": 2.0}]
        prefill_stats = {"num_prompt_tokens": 10, "num_cached_tokens": 4}
        params = prefill.handoff(leg_id, events=events, prefill_stats=prefill_stats)
        leg_id, fields = await decoder.leg()
        assert fields[3] == {
            "max_tokens": 8,
            "seed": 3,
            "stop": ["x"],
            "logprobs": 2,
            "structured_outputs": {"json": "{}", "_backend": "xgrammar"},
            "extra_args": {"kv_transfer_params": params},
        }
        late = [
            {"type": 1, "timestamp": 3.0},
            {"type": 2, "timestamp": 4.0},
            {"type": 3, "timestamp": 5.0},
        ]
        decoder.say(
            output(leg_id, [1], events=late, prefill_stats={"num_cached_tokens": 10}),
            output(leg_id, [2]),
        )
        first, second = await gateway.outputs()
        assert first[:2] == ["chat-1", [1]]
        assert second[:2] == ["chat-1", [2]]
        assert of(first, "prefill_stats") == prefill_stats
        assert of(first, "events") == [*events, late[2]]
        assert await prefill.released() == [1]
        decoder.say(output(leg_id, [3], finish_reason=1, kv_transfer_params={"secret": 1}))
        (last,) = await gateway.outputs()
        assert last[:2] == ["chat-1", [3]]
        assert (of(last, "finish_reason"), of(last, "kv_transfer_params")) == (1, None)
        status = await node.status()
        (trace,) = status.recent
        assert (trace.request_id, trace.finish) == ("chat-1", "length")
        assert trace.listener == "listener-20"
        assert (trace.prefill_worker, trace.decode_worker) == ("prefill-10", "decode-11")
        assert (trace.prompt_tokens, trace.cached_tokens, trace.output_tokens) == (10, 4, 3)
        assert trace.handoff_bytes == 4096
        assert status.finished_requests == status.handoffs.completed == status.ttft.count == 1
        assert (status.handoffs.leased, status.running_requests) == (0, 0)


@pytest.mark.parametrize(("num_computed", "failed"), [(0, 0), (1, 0), (2, 1), (10, 1)])
async def test_handoff_has_failed_when_more_than_the_last_token_is_computed_again(
    tmp_path: Path, num_computed: int, failed: int
) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        gateway.add("chat-1")
        prefill.handoff((await prefill.leg())[0])
        leg_id, _ = await decoder.leg()
        decoder.say(output(leg_id, [1], prefill_stats={"num_computed_tokens": num_computed}))
        await gateway.outputs()
        handoffs = (await node.status()).handoffs
        assert (handoffs.completed, handoffs.failed) == (1 - failed, failed)


async def test_aggregated_worker_gets_the_request_whole(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a", stop=["x"])
        leg_id, fields = await engine.leg()
        assert fields[3] == {"max_tokens": 8, "stop": ["x"]}
        engine.say(output(leg_id, [1, 2]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1, 2]]]


@pytest.mark.parametrize("sampling", [{"prompt_logprobs": 0}, {"max_tokens": 1}])
async def test_what_cannot_be_handed_over_goes_whole_to_one_worker(
    tmp_path: Path, sampling: dict[str, Any]
) -> None:
    async with running_node(tmp_path) as node:
        _, decoder, gateway = await pair(node)
        gateway.add("a", **sampling)
        _, fields = await decoder.leg()
        assert fields[3] == {"max_tokens": 8} | sampling


async def test_client_names_no_memory(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        evil = {"do_remote_prefill": True, "engine": 11, "lease_id": 99}
        extra = {"kv_transfer_params": evil, "ec_transfer_params": evil, "mine": 1}
        gateway.add("a", extra_args=extra)
        leg_id, fields = await prefill.leg()
        asked = {"do_remote_decode": True}
        assert fields[3]["extra_args"] == {"mine": 1, "kv_transfer_params": asked}
        params = prefill.handoff(leg_id)
        _, fields = await decoder.leg()
        assert fields[3]["extra_args"] == {"mine": 1, "kv_transfer_params": params}


async def test_tensor_frames_go_with_both_legs(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        gateway.send(b"\0", encode(request("a")), b"tensor", b"other")
        frames = await prefill.inbox.next()
        assert frames[2:] == [b"tensor", b"other"]
        prefill.handoff(decode(frames[1])[0])
        assert (await decoder.inbox.next())[2:] == [b"tensor", b"other"]


async def test_abort_during_prefill_reaches_that_worker_and_a_late_lease_is_released(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        prefill, _, gateway = await pair(node)
        gateway.add("a")
        leg_id, _ = await prefill.leg()
        gateway.abort("a", "never-seen")
        assert await prefill.aborted() == [leg_id]
        prefill.handoff(leg_id, lease_id=5)
        assert await prefill.released() == [5]
        assert (await node.status()).aborted_requests == 1


async def test_abort_before_decode_answers_reaches_that_worker_and_releases_the_lease(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        leg_id = await handed_over(prefill, decoder, gateway, "a")
        gateway.abort("a")
        assert await decoder.aborted() == [leg_id]
        assert await prefill.released() == [1]


async def test_abort_while_decoding_drops_late_outputs(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        leg_id = await handed_over(prefill, decoder, gateway, "a")
        decoder.say(output(leg_id, [1]))
        await gateway.outputs()
        gateway.abort("a")
        assert await decoder.aborted() == [leg_id]
        decoder.say(output(leg_id, [2]))
        assert await prefill.released() == [1]
        other = await handed_over(prefill, decoder, gateway, "b")
        decoder.say(output(other, [3]))
        assert [row[:2] for row in await gateway.outputs()] == [["b", [3]]]


async def test_prefill_that_ends_without_handoff_is_an_error_not_a_short_answer(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        prefill, _, gateway = await pair(node)
        gateway.add("a")
        leg_id, _ = await prefill.leg()
        prefill.say(output(leg_id, [7], finish_reason=0))
        (row,) = await gateway.outputs()
        assert (row[:2], of(row, "finish_reason")) == (["a", []], ERROR)
        assert (await node.status()).failed_requests == 1


@pytest.mark.parametrize("params", [{"lease_id": 1}, {"engine": 10}, [1], "x", 5])
async def test_handoff_that_is_none_is_an_error(tmp_path: Path, params: object) -> None:
    async with running_node(tmp_path) as node:
        prefill, _, gateway = await pair(node)
        gateway.add("a")
        leg_id, _ = await prefill.leg()
        prefill.say(output(leg_id, [7], finish_reason=1, kv_transfer_params=params))
        (row,) = await gateway.outputs()
        assert of(row, "finish_reason") == ERROR
        assert (await node.status()).rejected_frames == 1


async def test_same_id_from_two_gateways_is_never_mixed_up(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        one, two = await node.gateway(20), await node.gateway(21)
        one.add("same", [1] * 10)
        leg_one, fields = await engine.leg()
        assert fields[1] == [1] * 10
        two.add("same", [2] * 10)
        leg_two, fields = await engine.leg()
        assert fields[1] == [2] * 10
        engine.say(output(leg_two, [22]), output(leg_one, [11]), stats=stats_of(2))
        assert [row[:2] for row in await one.outputs()] == [["same", [11]]]
        assert [row[:2] for row in await two.outputs()] == [["same", [22]]]
        one.abort("same")
        assert await engine.aborted() == [leg_one]
        engine.say(output(leg_two, [23]))
        assert [row[:2] for row in await two.outputs()] == [["same", [23]]]


def stats_of(running: int) -> dict[str, Any]:
    return {"num_running_reqs": running, "num_waiting_reqs": 0, "kv_cache_usage": 0.5}


async def test_used_id_of_one_gateway_is_dropped_and_counted(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        gateway.add("a")
        await node.status_with(lambda status: status.rejected_frames == 1)
        engine.say(output(leg_id, [1]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]


async def test_streaming_input_continues_on_its_worker(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        _, decoder, gateway = await pair(node)
        fields = request("a")
        fields[15] = True
        gateway.send(b"\0", encode(fields))
        leg_id, _ = await decoder.leg()
        decoder.say(output(leg_id, [1]))
        await gateway.outputs()
        fields[1] = [5, 6]
        gateway.send(b"\0", encode(fields))
        again, piece = await decoder.leg()
        assert (again, piece[1]) == (leg_id, [5, 6])


async def test_gateway_gone_aborts_what_its_clients_asked_for(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        one, two = await node.gateway(20), await node.gateway(21)
        one.add("a")
        leg_one, _ = await engine.leg()
        two.add("b")
        leg_two, _ = await engine.leg()
        node.tell(control.DetachGateway(generation=20))
        assert await engine.aborted() == [leg_one]
        engine.say(output(leg_one, [1]), output(leg_two, [2]))
        assert [row[:2] for row in await two.outputs()] == [["b", [2]]]


@pytest.mark.parametrize("role", Role)
async def test_one_worker_of_any_role_serves_a_node(tmp_path: Path, role: Role) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, role)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        engine.say(output(leg_id, [1]))
        assert [row[:2] for row in await gateway.outputs()] == [["a", [1]]]


async def test_gateway_waits_for_no_worker_that_was_given_up(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        missing = FakeEngine(node, 12, Role.DECODE)
        missing.generation = 11  # so that it can never be sent to
        node.attach_worker(missing)
        await node.engine(10, Role.PREFILL)
        gateway = FakeGateway(node, 20)
        node.attach_gateway(gateway)
        await node.status()
        assert gateway.ready.waiting.empty()
        node.tell(control.DetachWorker(generation=11, reason="it died"))
        await node.told(control.GatewayServing(generation=20))


async def test_gateway_hears_ready_of_all_workers_that_are_on_their_way(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        decoder = FakeEngine(node, 11, Role.DECODE)
        decoder.ready |= {"max_model_len": 500, "num_gpu_blocks": 7}
        await decoder.attach()
        await node.engine(10, Role.PREFILL)
        gateway = FakeGateway(node, 20)
        node.attach_gateway(gateway)
        _, payload = await gateway.ready.next()
        assert decode(payload) == {
            "max_model_len": 500,
            "num_gpu_blocks": 107,
            "max_num_seqs": 16,
            "kv_cache_size_tokens": 800,
            "dp_stats_address": None,
            "dtype": "bfloat16",
            "data_parallel_size": 1,
            "data_parallel_rank": 0,
            "kv_events_config": None,
        }
        await node.told(control.GatewayServing(generation=20))


async def test_worker_that_is_attached_before_its_engine_connects_is_served_once_it_does(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine = FakeEngine(node, 10, Role.AGGREGATED)
        node.attach_worker(engine)
        assert (await node.status()).workers == ()
        engine.input.send(encode(engine.ready))
        await node.told(control.WorkerServing(generation=10))


async def test_drained_worker_is_reported_when_its_last_request_is_over(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        other = await node.engine(11, Role.AGGREGATED)
        node.tell(control.DrainWorker(generation=10))
        gateway.add("b")
        await other.leg()
        engine.say(output(leg_id, [1], finish_reason=0))
        await node.told(control.WorkerDrained(generation=10))


async def test_draining_node_serves_what_comes_and_reports_when_nothing_is_left(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        engine = await node.engine(10, Role.AGGREGATED)
        gateway = await node.gateway(20)
        gateway.add("a")
        leg_id, _ = await engine.leg()
        node.tell(control.DrainNode())
        await node.status()
        gateway.add("b")  # its gateway had accepted it
        second_id, _ = await engine.leg()
        engine.say(output(second_id, [1], finish_reason=0))
        engine.say(output(leg_id, [1], finish_reason=0))
        await node.told(control.NodeDrained())


async def test_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with running_node(tmp_path, max_queued_requests=1) as node:
        engine = FakeEngine(node, 10, Role.AGGREGATED)
        engine.ready["max_num_seqs"] = 1
        await engine.attach()
        gateway = await node.gateway(20)
        for number in range(8):
            gateway.add(str(number))
        (row,) = await gateway.outputs()
        assert of(row, "finish_reason") == ERROR
        assert (await node.status()).queued_requests <= 1


async def test_role_change_moves_new_requests(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        prefill, decoder, gateway = await pair(node)
        node.tell(control.SetWorkerRole(generation=11, role=Role.PREFILL))
        node.tell(control.SetWorkerRole(generation=10, role=Role.DECODE))
        await node.status()
        gateway.add("a")
        leg_id, _ = await decoder.leg()
        decoder.handoff(leg_id)
        await prefill.leg()
