"""Claims about how requests are read and patched."""

import random
from typing import Any

import msgspec
import pytest

from nodeserve.ids import Generation, LegId
from nodeserve.wire.codec import decode_map, encode
from nodeserve.wire.control import WireFields
from nodeserve.wire.engine_core import (
    LISTENER,
    MAX_GRAMMAR_BYTES,
    RESUMED,
    RequestCodec,
    decode_abort,
    decode_utility,
    encode_utility,
    generation_of,
    identity_of,
    name_listener,
)
from tests.dispatcher.fakes import FIELDS, request

decode = msgspec.msgpack.decode
LEG = LegId("r1.1")


@pytest.fixture
def codec() -> RequestCodec:
    return RequestCodec(FIELDS, "xgrammar")


def leg_of(codec: RequestCodec, **sampling: Any) -> list[Any]:
    leg: list[Any] = decode(codec.whole_leg(codec.decode(encode(request("a", **sampling))), LEG))
    return leg


def test_whole_leg_changes_only_the_id_and_what_names_a_client(codec: RequestCodec) -> None:
    fields = request("a", seed=3)
    fields[8], fields[11], fields[12], fields[13] = 5, 6, 7, -2
    fields[14], fields[20] = {"traceparent": "00"}, "session"
    leg = decode(codec.whole_leg(codec.decode(encode(fields)), LEG))
    fields[0], fields[8], fields[11], fields[12] = LEG, None, 0, 0
    assert leg == fields


def test_facts_are_read(codec: RequestCodec) -> None:
    fields = request("a", [1, 2, 3], max_tokens=9)
    fields[6], fields[7], fields[13] = ["lora", 1, "/path"], "salt", 4
    add = codec.decode(encode(fields))
    assert (add.wire_id, add.prompt_token_ids, add.max_tokens) == ("a", [1, 2, 3], 9)
    assert (add.priority, add.lora_name, add.cache_salt) == (4, "lora", "salt")
    assert (add.whole, add.media, add.resumable) == (False, False, False)


@pytest.mark.parametrize(
    ("sampling", "max_tokens"), [({}, 16), ({"max_tokens": None}, None), ({"max_tokens": 5}, 5)]
)
def test_max_tokens_is_vllms_default_when_the_map_leaves_it_out(
    codec: RequestCodec, sampling: dict[str, Any], max_tokens: int | None
) -> None:
    fields = request("a")
    fields[3] = sampling
    assert codec.decode(encode(fields)).max_tokens == max_tokens


@pytest.mark.parametrize(
    "sampling",
    [
        {"prompt_logprobs": 0},
        {"prompt_logprobs": -1},
        {"prompt_logprob_token_ids": [[1]]},
        {"skip_reading_prefix_cache": True},
        {"max_tokens": 1},
    ],
)
def test_what_needs_its_own_prompt_cannot_be_handed_over(
    codec: RequestCodec, sampling: dict[str, Any]
) -> None:
    assert codec.decode(encode(request("a", **sampling))).whole


@pytest.mark.parametrize("sampling", [{"skip_reading_prefix_cache": False}, {"logprobs": 5}])
def test_ordinary_requests_can_be_handed_over(
    codec: RequestCodec, sampling: dict[str, Any]
) -> None:
    assert not codec.decode(encode(request("a", **sampling))).whole


@pytest.mark.parametrize(("index", "value"), [(2, [{}]), (9, [1]), (15, True), (19, True)])
def test_media_embeddings_and_streaming_input_cannot_be_handed_over(
    codec: RequestCodec, index: int, value: Any
) -> None:
    fields = request("a")
    fields[index] = value
    assert codec.decode(encode(fields)).whole


def test_pooling_goes_whole_and_unchanged(codec: RequestCodec) -> None:
    fields = request("a")
    fields[3], fields[4] = None, [None, 64]
    add = codec.decode(encode(fields))
    assert (add.whole, add.max_tokens) == (True, 0)
    assert decode(codec.whole_leg(add, LEG))[3:5] == [None, [None, 64]]


def test_client_cannot_name_memory_nor_what_it_was_sent(codec: RequestCodec) -> None:
    evil = {"kv_transfer_params": {"do_remote_prefill": True}, "ec_transfer_params": {}, "x": 1}
    evil |= {RESUMED: [1, 2]}
    assert leg_of(codec, extra_args=evil)[3]["extra_args"] == {"x": 1}


@pytest.mark.parametrize("backend", [None, "guidance", "outlines", "xgrammar"])
def test_grammar_backend_is_the_nodes_whatever_the_front_end_chose(
    codec: RequestCodec, backend: str | None
) -> None:
    grammar = {"json": "{}", "_backend": backend, "_backend_was_auto": True}
    sampling = leg_of(codec, structured_outputs=grammar)[3]
    assert sampling["structured_outputs"] == grammar | {"_backend": "xgrammar"}


def test_structured_output_that_takes_long_to_compile_is_refused(codec: RequestCodec) -> None:
    leg_of(codec, structured_outputs={"regex": "a" * (MAX_GRAMMAR_BYTES - 100)})
    with pytest.raises(ValueError, match=f"above {MAX_GRAMMAR_BYTES}"):
        leg_of(codec, structured_outputs={"regex": "a" * MAX_GRAMMAR_BYTES})


def test_prefill_leg_makes_one_token_that_nothing_stops_or_constrains(
    codec: RequestCodec,
) -> None:
    asked = {
        "max_tokens": 40,
        "min_tokens": 3,
        "logprobs": 2,
        "logprob_token_ids": [1],
        "structured_outputs": {"json": "{}"},
        "stop": ["x"],
        "stop_token_ids": [5],
        "_all_stop_token_ids": [5],
        "seed": 3,
        "temperature": 0.5,
    }
    add = codec.decode(encode(request("a", **asked)))
    leg = decode(codec.prefill_leg(add, LEG))
    assert leg[0] == LEG
    assert leg[3] == {
        "max_tokens": 1,
        "ignore_eos": True,
        "seed": 3,
        "temperature": 0.5,
        "extra_args": {"kv_transfer_params": {"do_remote_decode": True}},
    }


def test_decode_leg_is_the_original_with_exactly_the_handoff(codec: RequestCodec) -> None:
    add = codec.decode(encode(request("a", stop=["x"], extra_args={"mine": 1})))
    codec.prefill_leg(add, LegId("r1.1"))
    handoff = {"engine": 3, "lease_id": 4, "opaque": [1, {"a": b"b"}]}
    leg = decode(codec.decode_leg(add, LegId("r1.2"), handoff))
    assert leg[0] == "r1.2"
    assert leg[3] == {
        "max_tokens": 8,
        "stop": ["x"],
        "extra_args": {"mine": 1, "kv_transfer_params": handoff},
    }


def test_every_leg_names_its_listener_once_it_is_known(codec: RequestCodec) -> None:
    add = codec.decode(encode(request("a", extra_args={"x": 1})))
    name_listener(add, "batch")
    handoff = {"do_remote_prefill": True, "slot": 3}
    params = [
        decode(leg)[3]["extra_args"]["kv_transfer_params"]
        for leg in (
            codec.whole_leg(add, LEG),
            codec.prefill_leg(add, LEG),
            codec.decode_leg(add, LEG, handoff),
            codec.resumed_leg(add, LEG, [7]),
        )
    ]
    named = {LISTENER: "batch"}
    assert params == [named, {"do_remote_decode": True, **named}, {**handoff, **named}, named]
    assert decode(codec.resumed_leg(add, LEG, [7]))[3]["extra_args"][RESUMED] == [7]


def test_client_cannot_pass_for_another_listener(codec: RequestCodec) -> None:
    claim = {"kv_transfer_params": {LISTENER: "vip"}}
    add = codec.decode(encode(request("a", extra_args=claim)))
    name_listener(add, "batch")
    leg = decode(codec.whole_leg(add, LEG))
    assert leg[3]["extra_args"] == {"kv_transfer_params": {LISTENER: "batch"}}


def test_pooling_names_nobody(codec: RequestCodec) -> None:
    fields = request("a")
    fields[3], fields[4] = None, [None, 64]
    add = codec.decode(encode(fields))
    name_listener(add, "batch")
    assert decode(codec.whole_leg(add, LEG))[3:5] == [None, [None, 64]]


def test_fields_are_found_by_name_not_by_place() -> None:
    names = tuple(reversed(FIELDS.request))
    codec = RequestCodec(msgspec.structs.replace(FIELDS, request=names), "xgrammar")
    add = codec.decode(encode(list(reversed(request("a", [1, 2])))))
    assert (add.wire_id, add.prompt_token_ids) == ("a", [1, 2])
    assert list(reversed(decode(codec.whole_leg(add, LEG))))[:2] == [LEG, [1, 2]]


def test_array_that_ends_early_is_read_with_defaults(codec: RequestCodec) -> None:
    add = codec.decode(encode(["a", [1], None, {"max_tokens": 4}]))
    assert (add.max_tokens, add.priority, add.whole) == (4, 0, False)
    assert decode(codec.whole_leg(add, LEG)) == [LEG, [1], None, {"max_tokens": 4}]


def test_unknown_version_without_a_needed_field_is_refused() -> None:
    with pytest.raises(ValueError, match="lack"):
        RequestCodec(WireFields(request=("x",), outputs=(), output=(), vllm_version="9"), "x")


HOSTILE = [
    b"",
    b"\xc1",
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x81\x81\x01\x01\x01",
    b"\x94\xa2\xff\xfe\x90\xc0\x80",
    encode(5),
    encode({"request_id": "a"}),
    encode(["a"]),
    encode([5, [1], None, {}]),
    encode(["a", "text", None, {}]),
    encode(["a", [1], None, "text"]),
    encode(["a", [1], None, ["a", "b"]]),
    encode(["a", [1], None, {"extra_args": 5}]),
    encode(["a", [1], None, {"extra_args": [5]}]),
    encode(["a", [1], None, {"structured_outputs": 5}]),
    encode(["a", [1], None, {}, None, 0.0, 5]),
    encode(["a", [1], None, {}, None, 0.0, {"a": 1}]),
]


@pytest.mark.parametrize("frame", HOSTILE)
def test_hostile_requests_are_value_errors(codec: RequestCodec, frame: bytes) -> None:
    with pytest.raises(ValueError, match="ADD of"):
        codec.decode(frame)


@pytest.mark.parametrize("frame", HOSTILE[:8])
def test_hostile_frames_of_other_kinds_are_value_errors(frame: bytes) -> None:
    for read in (decode_abort, decode_utility, decode_map):
        with pytest.raises(ValueError):
            read(frame)


def test_random_and_truncated_frames_never_raise_anything_else(codec: RequestCodec) -> None:
    random_source = random.Random(1)
    whole = encode(request("a", extra_args={"x": 1}, structured_outputs={"json": "{}"}))
    for _ in range(3000):
        frame = bytearray(whole[: random_source.randrange(len(whole) + 1)])
        for _ in range(random_source.randrange(3) if frame else 0):
            frame[random_source.randrange(len(frame))] = random_source.randrange(256)
        try:
            codec.prefill_leg(codec.decode(bytes(frame)), LEG)
        except ValueError:
            continue


def test_id_of_an_unreadable_request_is_found(codec: RequestCodec) -> None:
    assert codec.wire_id(encode(["a", "not tokens", None, 5])) == "a"


def test_utility_travels(codec: RequestCodec) -> None:
    assert decode_utility(encode_utility(7, "m", [[1]])) == (0, 7, "m", [[1]])
    call_id = (1 << 64) - 1  # vLLM's are the upper half of a UUID
    assert decode_utility(encode((3, call_id, "m", ())))[1] == call_id


def test_identity_is_two_bytes_little_endian() -> None:
    assert identity_of(Generation(258)) == b"\x02\x01"
    assert generation_of(b"\x02\x01") == 258
    for identity in (b"", b"\x01", b"\x01\x02\x03"):
        with pytest.raises(ValueError):
            generation_of(identity)
