import msgspec
import pytest

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.kv_blocks import Cleared, Removed, Stored
from nodeserve.ids import BlockHash

NO_LOOK_UPS = wire.PrefixStats()


def encoded_step():
    row = wire.new_row("leg-1", 42)
    wire.put(row, wire.EVENTS, [wire.event(wire.EVENT_QUEUED, 1.5)])
    wire.put(row, wire.LOGPROBS, wire.sample_logprobs(42, (42, 7)))
    wire.put(row, wire.PROMPT_LOGPROBS, wire.prompt_logprobs([5, 6, 7], (5,)))
    wire.put(row, wire.FINISH_REASON, wire.FINISH_LENGTH)
    wire.put(row, wire.KV_TRANSFER_PARAMS, {"do_remote_prefill": True})
    prefill_stats = {
        "num_prompt_tokens": 3,
        "num_computed_tokens": 3,
        "num_cached_tokens": 0,
        "num_local_cached_tokens": 0,
        "num_external_cached_tokens": 0,
        "num_cache_creation_tokens": 0,
    }
    wire.put(row, wire.PREFILL_STATS, prefill_stats)
    stats = wire.scheduler_stats(
        running=3, waiting=2, loading=1, kv_usage=0.5, looked_up=wire.PrefixStats(1, 20, 16)
    )
    return wire.OutputsEncoder(7).step([row], stats, 12.5)


def test_step_has_every_field_at_its_place():
    message = msgspec.msgpack.decode(encoded_step())
    outputs = dict(zip(wire.FIELDS.outputs, message, strict=True))
    assert (outputs["engine_index"], outputs["timestamp"]) == (7, 12.5)
    assert outputs["scheduler_stats"]["num_running_reqs"] == 3
    (row,) = outputs["outputs"]
    output = dict(zip(wire.FIELDS.output, row, strict=False))
    assert (output["request_id"], output["new_token_ids"]) == ("leg-1", [42])
    assert (output["finish_reason"], output["stop_reason"]) == (1, None)
    assert output["prefill_stats"]["num_prompt_tokens"] == 3


def test_row_is_no_longer_than_what_it_says():
    assert wire.new_row("leg-1", 42) == ["leg-1", [42]]


def test_end_row_ends_without_a_token():
    row = dict(zip(wire.FIELDS.output, wire.end_row("leg-1", wire.FINISH_ERROR), strict=False))
    assert (row["new_token_ids"], row["finish_reason"]) == ([], 3)


def test_utility_answer_carries_a_value_or_a_failure():
    encoder = wire.OutputsEncoder(7)
    place = wire.FIELDS.outputs.index("utility_output")
    answer = msgspec.msgpack.decode(encoder.utility(5, [1], None, now_s=1.0))
    assert answer[place] == [5, None, [None, [1]]]
    failure = msgspec.msgpack.decode(encoder.utility(6, None, "no", now_s=1.0))
    assert failure[place] == [6, "no", None]


def test_request_is_read_from_a_short_list_and_from_a_long_one():
    short = ["leg-1", [1, 2], None, {"max_tokens": 5}, None, 0.0, None, "salt", None]
    for message in (
        short,
        [*short, *[None] * 2, 0, 0, 3, None, False, *[None] * 3, False, 1, 2, 3],
    ):
        request = wire.decode_request(msgspec.msgpack.encode(message))
        assert request.sampling_params is not None
        assert (request.request_id, request.sampling_params.max_tokens) == ("leg-1", 5)
        assert request.cache_salt == "salt"
    assert request.priority == 3


def test_garbled_request_still_says_its_name():
    frame = msgspec.msgpack.encode(["leg-1", "not a prompt"])
    with pytest.raises(msgspec.ValidationError):
        wire.decode_request(frame)
    assert wire.decode_name(frame).request_id == "leg-1"


def test_kv_events_are_tagged_maps_in_a_batch():
    events = [
        Stored([BlockHash(-1), BlockHash(5)], None, [1, 2, 3, 4], "salt"),
        Stored([BlockHash(6)], BlockHash(5), [5, 6], "salt"),
        Removed([BlockHash(5)]),
        Cleared(),
    ]
    at_s, batch, rank = msgspec.msgpack.decode(wire.encode_kv_events(events, 2, 9.0))
    assert (at_s, rank) == (9.0, 0)
    assert [event["type"] for event in batch] == [
        "BlockStored",
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    ]
    assert batch[0]["block_hashes"] == [(1 << 64) - 1, 5]
    assert batch[0]["parent_block_hash"] is None
    assert batch[0]["extra_keys"] == [["salt"], None]
    assert (batch[1]["parent_block_hash"], batch[1].get("extra_keys")) == (5, None)


# ------------------------------------------------------------ against the installed vLLM


@pytest.mark.vllm
def test_field_names_are_those_of_the_installed_vllm():
    vllm = pytest.importorskip("vllm")
    engine = pytest.importorskip("vllm.v1.engine")
    assert wire.FIELDS.request == engine.EngineCoreRequest.__struct_fields__
    assert wire.FIELDS.outputs == engine.EngineCoreOutputs.__struct_fields__
    assert wire.FIELDS.output == engine.EngineCoreOutput.__struct_fields__
    assert vllm.__version__.split("+")[0] == wire.FIELDS.vllm_version


@pytest.mark.vllm
def test_vllm_reads_our_outputs():
    engine = pytest.importorskip("vllm.v1.engine")
    serial = pytest.importorskip("vllm.v1.serial_utils")
    outputs = serial.MsgpackDecoder(engine.EngineCoreOutputs).decode([encoded_step()])
    (output,) = outputs.outputs
    assert output.finish_reason is engine.FinishReason.LENGTH
    assert output.events[0].type is engine.EngineCoreEventType.QUEUED
    assert output.prefill_stats.num_prompt_tokens == 3
    assert output.new_logprobs.logprob_token_ids.tolist() == [[42, 42, 7]]
    assert output.new_prompt_logprobs_tensors.logprob_token_ids.tolist() == [[5, 5], [6, 5], [7, 5]]
    assert outputs.scheduler_stats.prefix_cache_stats.hits == 16


@pytest.mark.vllm
def test_our_stats_have_every_field_of_vllms():
    stats = pytest.importorskip("vllm.v1.metrics.stats")
    ours = wire.scheduler_stats(
        running=0, waiting=0, loading=0, kv_usage=0.0, looked_up=NO_LOOK_UPS
    )
    assert set(ours) == set(stats.SchedulerStats.__dataclass_fields__)
    prefix = ours["prefix_cache_stats"]
    assert set(prefix) == set(stats.PrefixCacheStats.__dataclass_fields__)


@pytest.mark.vllm
def test_vllm_reads_our_kv_events():
    kv_events = pytest.importorskip("vllm.distributed.kv_events")
    events = [Stored([BlockHash(5)], None, [1, 2], "salt"), Removed([BlockHash(5)]), Cleared()]
    payload = wire.encode_kv_events(events, 2, 9.0)
    batch = msgspec.msgpack.decode(payload, type=kv_events.KVEventBatch)
    assert [type(event).__name__ for event in batch.events] == [
        "BlockStored",
        "BlockRemoved",
        "AllBlocksCleared",
    ]
    assert batch.events[0].medium == kv_events.MEDIUM_GPU


@pytest.mark.vllm
def test_we_read_vllms_requests():
    engine = pytest.importorskip("vllm.v1.engine")
    serial = pytest.importorskip("vllm.v1.serial_utils")
    sampling = pytest.importorskip("vllm.sampling_params")
    params = sampling.SamplingParams(max_tokens=9, seed=3, logprobs=2, stop_token_ids=[8])
    request = engine.EngineCoreRequest(
        request_id="leg-1",
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        priority=4,
    )
    (frame,) = serial.MsgpackEncoder().encode(request)
    read = wire.decode_request(frame)
    assert (read.request_id, read.prompt_token_ids, read.priority) == ("leg-1", [1, 2, 3], 4)
    ours = read.sampling_params
    assert ours is not None
    assert (ours.max_tokens, ours.seed, ours.logprobs, ours.stop_token_ids) == (9, 3, 2, [8])
