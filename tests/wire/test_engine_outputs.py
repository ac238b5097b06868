"""Claims about how outputs are read and patched."""

from typing import Any

import msgspec
import pytest

from nodeserve.wire.codec import encode
from nodeserve.wire.engine_outputs import ERROR, LENGTH, STOP, Handoff, OutputCodec
from tests.dispatcher.fakes import FIELDS, of, output
from tests.wire.test_engine_core import HOSTILE

PARAMS: dict[str, Any] = {"engine": 3, "lease_id": 4, "num_tokens": 5, "num_bytes": 6, "x": [1]}


@pytest.fixture
def codec() -> OutputCodec:
    return OutputCodec(FIELDS)


def test_message_round_trips_untouched(codec: OutputCodec) -> None:
    message = [3, [output("a", [1]), ["b", [2]]], {"x": 1.5}, 1.0, None, None, None, None, "v1"]
    read = codec.decode(encode(message))
    assert msgspec.msgpack.decode(read[codec.scheduler_stats]) == {"x": 1.5}
    assert encode(read) == encode(message)


@pytest.mark.parametrize("frame", [*HOSTILE[:9], b"ENGINE_CORE_DEAD", encode(["x", []])])
def test_hostile_messages_are_value_errors(codec: OutputCodec, frame: bytes) -> None:
    with pytest.raises(ValueError, match="EngineCoreOutputs of"):
        codec.decode(frame)


def test_short_output_has_defaults_and_grows_when_patched(codec: OutputCodec) -> None:
    row: list[Any] = ["a", [1]]
    assert codec.field(row, codec.prefill_stats) is None
    codec.put(row, codec.events, [])
    assert row == ["a", [1], None, None, None, None, None, []]


def test_finish_carries_no_token(codec: OutputCodec) -> None:
    row = codec.finish("a", ERROR)
    assert (row[0], row[1], of(row, "finish_reason")) == ("a", [], 3)


def test_utility_answer_has_a_result_or_a_failure(codec: OutputCodec) -> None:
    assert codec.utility_answer(7, None, [1], 2.0) == [0, [], None, 2.0, [7, None, [None, [1]]]]
    assert codec.utility_answer(7, "no", [1], 2.0) == [0, [], None, 2.0, [7, "no", None]]


def test_handoff_keeps_its_parameters_whole(codec: OutputCodec) -> None:
    row = output("a", [1], finish_reason=1, kv_transfer_params=PARAMS)
    assert codec.handoff(row) == Handoff(3, 4, 5, 6, PARAMS)
    assert codec.handoff(output("a", [1])) is None


@pytest.mark.parametrize(
    "params", [5, "x", [1], {}, PARAMS | {"lease_id": "4"}, {"engine": 1}, {1: 2}]
)
def test_what_is_no_handoff_is_a_value_error(codec: OutputCodec, params: object) -> None:
    with pytest.raises(ValueError, match="not a handoff"):
        codec.handoff(output("a", [1], kv_transfer_params=params))


def test_unknown_version_without_a_needed_field_is_refused() -> None:
    with pytest.raises(ValueError, match="lack 'finish_reason'"):
        OutputCodec(msgspec.structs.replace(FIELDS, output=("request_id", "new_token_ids")))


def test_version_whose_outputs_begin_otherwise_is_refused() -> None:
    first, second, *rest = FIELDS.output
    for begin in ((first, "new", second), ("new", first, second)):
        with pytest.raises(ValueError, match="do not begin with id and tokens"):
            OutputCodec(msgspec.structs.replace(FIELDS, output=(*begin, *rest)))


@pytest.mark.parametrize("name", FIELDS.output[2:])
def test_output_is_plain_that_has_only_tokens(codec: OutputCodec, name: str) -> None:
    assert codec.is_plain(["a", [1]])
    assert codec.is_plain(output("a", []))
    assert not codec.is_plain(output("a", [1], **{name: 1}))


@pytest.mark.parametrize("name", FIELDS.output[2:])
def test_only_what_tells_of_the_beginning_may_grow(codec: OutputCodec, name: str) -> None:
    may_grow = name in {"prefill_stats", "events"}
    assert codec.may_grow(output("a", [1], **{name: 1})) == may_grow


@pytest.mark.parametrize("reason", range(5))
def test_mere_end_has_tokens_and_is_no_failure(codec: OutputCodec, reason: int) -> None:
    end = output("a", [1], finish_reason=reason, stop_reason=7)
    assert codec.is_mere_end(end) == (reason in {STOP, LENGTH})
    assert not codec.is_plain(end)
    assert not codec.may_grow(end)
    assert not codec.is_mere_end(output("a", [], finish_reason=reason))
    assert not codec.is_mere_end(output("a", [1], finish_reason=reason, new_logprobs=[1]))
    assert not codec.is_mere_end(output("a", [1]))
