"""The contract with the installed vLLM: what we patch by name is what its structs read.

Nothing is started here, so the fast half of every run finds out when a release moves a field.
"""

import random

import msgspec
import pytest

from nodeserve.ids import LegId
from nodeserve.wire.control import WireFields
from nodeserve.wire.engine_core import ABORT, ADD, UTILITY, RequestCodec, encode_utility
from nodeserve.wire.engine_outputs import ERROR, FINISH_NAMES, OutputCodec
from nodeserve.wire.kv_events import BlockRemoved, BlockStored, decode_batch

pytestmark = pytest.mark.vllm

HANDOFF = {"do_remote_prefill": True, "engine": 3, "lease_id": 4, "num_tokens": 5, "num_bytes": 6}


@pytest.fixture
def fields() -> WireFields:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest  # noqa: PLC0415

    return WireFields(
        request=EngineCoreRequest.__struct_fields__,
        outputs=EngineCoreOutputs.__struct_fields__,
        output=EngineCoreOutput.__struct_fields__,
        vllm_version="installed",
    )


def vllm_request(**sampling):
    from vllm.lora.request import LoRARequest  # noqa: PLC0415
    from vllm.sampling_params import SamplingParams  # noqa: PLC0415
    from vllm.v1.engine import EngineCoreRequest  # noqa: PLC0415

    return EngineCoreRequest(
        request_id="client",
        prompt_token_ids=list(range(300)),
        mm_features=None,
        sampling_params=SamplingParams(**sampling),
        pooling_params=None,
        arrival_time=1.5,
        lora_request=LoRARequest("adapter", 1, "/nowhere"),
        cache_salt="salt",
        data_parallel_rank=None,
        client_index=3,
        priority=-7,
        trace_headers={"traceparent": "00"},
    )


def through(codec: RequestCodec, request, make):
    """Encode as vLLM does, let ``make`` build a leg, decode as an engine does."""
    from vllm.v1.engine import EngineCoreRequest  # noqa: PLC0415
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder  # noqa: PLC0415

    (frame,) = MsgpackEncoder().encode(request)
    return MsgpackDecoder(EngineCoreRequest).decode(make(codec.decode(bytes(frame))))


def test_whole_leg_is_the_request_under_another_id(fields: WireFields) -> None:
    codec = RequestCodec(fields, "xgrammar")
    request = vllm_request(max_tokens=9, stop=["x"], seed=3, temperature=0.5, logit_bias={5: 1.0})
    leg = through(codec, request, lambda add: codec.whole_leg(add, LegId("leg")))
    for name in fields.request:
        if name not in {"request_id", "client_index"}:
            assert getattr(leg, name) == getattr(request, name), name
    assert (leg.request_id, leg.client_index) == ("leg", 0)


def test_facts_are_those_that_vllm_meant(fields: WireFields) -> None:
    from vllm.v1.serial_utils import MsgpackEncoder  # noqa: PLC0415

    codec = RequestCodec(fields, "xgrammar")
    for max_tokens in (1, 16, 900):
        (frame,) = MsgpackEncoder().encode(vllm_request(max_tokens=max_tokens))
        add = codec.decode(bytes(frame))
        assert (add.wire_id, add.prompt_token_ids) == ("client", list(range(300)))
        assert (add.max_tokens, add.priority) == (max_tokens, -7)
        assert (add.lora_name, add.cache_salt, add.media) == ("adapter", "salt", False)
        assert add.whole == (max_tokens == 1)


def test_prefill_leg_makes_one_free_token(fields: WireFields) -> None:
    from vllm.sampling_params import StructuredOutputsParams  # noqa: PLC0415

    codec = RequestCodec(fields, "xgrammar")
    request = vllm_request(
        max_tokens=9,
        min_tokens=4,
        stop=["x"],
        stop_token_ids=[7],
        logprobs=2,
        seed=3,
        structured_outputs=StructuredOutputsParams(json='{"type": "object"}'),
        extra_args={"kv_transfer_params": {"do_remote_prefill": True}},
    )
    leg = through(codec, request, lambda add: codec.prefill_leg(add, LegId("leg")))
    params = leg.sampling_params
    assert (params.max_tokens, params.min_tokens, params.ignore_eos) == (1, 0, True)
    assert (params.stop, params.stop_token_ids, params.logprobs) == ([], [], None)
    assert (params.structured_outputs, params.seed) == (None, 3)
    assert params.extra_args == {"kv_transfer_params": {"do_remote_decode": True}}


@pytest.mark.parametrize("chosen", [None, "xgrammar", "guidance"])
def test_decode_leg_has_the_handoff_and_the_nodes_grammar_backend(
    fields: WireFields, chosen: str | None
) -> None:
    from vllm.sampling_params import StructuredOutputsParams  # noqa: PLC0415

    codec = RequestCodec(fields, "xgrammar")
    grammar = StructuredOutputsParams(json='{"type": "object"}')
    grammar._backend = chosen
    request = vllm_request(max_tokens=9, structured_outputs=grammar)
    leg = through(codec, request, lambda add: codec.decode_leg(add, LegId("leg"), HANDOFF))
    assert leg.sampling_params.extra_args["kv_transfer_params"] == HANDOFF
    assert leg.sampling_params.structured_outputs._backend == "xgrammar"
    assert leg.sampling_params.structured_outputs.json == '{"type": "object"}'
    assert leg.sampling_params.max_tokens == 9


def test_outputs_patched_by_index_read_as_vllms(fields: WireFields) -> None:
    from vllm.v1.engine import (  # noqa: PLC0415
        EngineCoreEvent,
        EngineCoreEventType,
        EngineCoreOutput,
        EngineCoreOutputs,
        FinishReason,
    )
    from vllm.v1.metrics.stats import PrefillStats, SchedulerStats  # noqa: PLC0415
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder  # noqa: PLC0415

    codec = OutputCodec(fields)
    sent = EngineCoreOutputs(
        engine_index=3,
        outputs=[
            EngineCoreOutput(
                "leg",
                [5, 6],
                finish_reason=FinishReason.LENGTH,
                events=[EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, 2.0)],
                kv_transfer_params=HANDOFF,
                prefill_stats=PrefillStats(num_prompt_tokens=9),
            )
        ],
        scheduler_stats=SchedulerStats(num_running_reqs=2, kv_cache_usage=0.5),
        finished_requests={"leg"},
    )
    message = codec.decode(bytes(MsgpackEncoder().encode(sent)[0]))
    (row,) = message[codec.outputs]
    handoff = codec.handoff(row)
    assert handoff is not None
    assert (handoff.engine, handoff.lease_id, handoff.params) == (3, 4, HANDOFF)
    assert row[codec.events] == [{"type": 1, "timestamp": 2.0}]
    message[codec.engine_index] = 0
    stats = msgspec.msgpack.decode(message[codec.scheduler_stats])
    message[codec.scheduler_stats] = stats | {"num_running_reqs": 7}
    message[codec.finished_requests] = None
    row[codec.request_id] = "client"
    row[codec.kv_transfer_params] = None
    back = MsgpackDecoder(EngineCoreOutputs).decode(msgspec.msgpack.encode(message))
    assert (back.engine_index, back.finished_requests, back.timestamp) == (0, None, sent.timestamp)
    assert back.scheduler_stats.num_running_reqs == 7
    (output,) = back.outputs
    assert (output.request_id, output.new_token_ids) == ("client", [5, 6])
    assert output.finish_reason is FinishReason.LENGTH
    assert output.prefill_stats == PrefillStats(num_prompt_tokens=9)
    assert output.kv_transfer_params is None


def test_what_we_write_ourselves_reads_as_vllms(fields: WireFields) -> None:
    from vllm.v1.engine import EngineCoreOutputs, FinishReason  # noqa: PLC0415
    from vllm.v1.metrics.stats import SchedulerStats  # noqa: PLC0415
    from vllm.v1.serial_utils import MsgpackDecoder  # noqa: PLC0415

    codec = OutputCodec(fields)
    decode = MsgpackDecoder(EngineCoreOutputs).decode
    failed = decode(
        msgspec.msgpack.encode(codec.message([codec.finish("client", ERROR)], None, 2.0))
    )
    assert failed.outputs[0].finish_reason is FinishReason.ERROR
    assert failed.outputs[0].new_token_ids == []
    stats = msgspec.to_builtins(SchedulerStats(num_running_reqs=4))
    gauges = decode(msgspec.msgpack.encode(codec.message([], stats, 2.0)))
    assert gauges.scheduler_stats == SchedulerStats(num_running_reqs=4)
    answer = decode(msgspec.msgpack.encode(codec.utility_answer(1 << 63, None, [True], 2.0)))
    assert answer.utility_output.call_id == 1 << 63
    assert answer.utility_output.result.result == [True]
    refused = decode(msgspec.msgpack.encode(codec.utility_answer(1, "no", None, 2.0)))
    assert refused.utility_output.failure_message == "no"


def test_kinds_and_reasons_are_vllms() -> None:
    from vllm.v1.engine import FINISH_REASON_STRINGS, EngineCoreRequestType  # noqa: PLC0415
    from vllm.v1.serial_utils import MsgpackDecoder  # noqa: PLC0415

    kinds = EngineCoreRequestType
    assert (kinds.ADD.value, kinds.ABORT.value, kinds.UTILITY.value) == (ADD, ABORT, UTILITY)
    assert FINISH_NAMES == FINISH_REASON_STRINGS
    payload = encode_utility(5, "nodeserve_release", [[1, 2]])
    assert MsgpackDecoder().decode(payload) == [0, 5, "nodeserve_release", [[1, 2]]]


def test_kv_events_of_vllm_are_read() -> None:
    from vllm.distributed import kv_events  # noqa: PLC0415

    stored = kv_events.BlockStored(
        block_hashes=[1, b"2"],
        parent_block_hash=None,
        token_ids=[1, 2],
        block_size=1,
        lora_id=None,
        medium="GPU",
        lora_name=None,
        extra_keys=[None, ("salt",)],
    )
    removed = kv_events.BlockRemoved(block_hashes=[1], medium="GPU")
    batch = kv_events.KVEventBatch(
        ts=1.0, events=[stored, removed, kv_events.AllBlocksCleared()], data_parallel_rank=0
    )
    sequence, events = decode_batch([b"", b"\0" * 7 + b"\5", msgspec.msgpack.encode(batch)])
    assert sequence == 5
    assert events[0] == BlockStored(
        block_hashes=[1, b"2"],
        token_ids=[1, 2],
        block_size=1,
        medium="GPU",
        extra_keys=[None, ["salt"]],
    )
    assert events[1] == BlockRemoved(block_hashes=[1], medium="GPU")


def test_mangled_requests_are_refused_or_still_vllms(fields: WireFields) -> None:
    from vllm.v1.serial_utils import MsgpackEncoder  # noqa: PLC0415

    codec = RequestCodec(fields, "xgrammar")
    whole = bytes(MsgpackEncoder().encode(vllm_request(max_tokens=9))[0])
    source = random.Random(1)
    for _ in range(500):
        frame = bytearray(whole)
        frame[source.randrange(len(frame))] = source.randrange(256)
        try:
            codec.prefill_leg(codec.decode(bytes(frame)), LegId("leg"))
        except ValueError:
            continue
