"""Claims about control messages."""

import random
from typing import get_args

import msgspec
import pytest

from nodeserve.wire import control
from nodeserve.wire.control import (
    CommandReply,
    DispatcherStatus,
    GatewayGivenUp,
    StatusRequest,
    WorkerGivenUp,
    WorkerHeartbeat,
)
from nodeserve.wire.device_control import DeviceReported
from nodeserve.wire.device_report import DeviceReport, DeviceSample, Finding
from nodeserve.wire.kv_control import KvDone, KvPin, KvPrefix, KvTierLoad, KvTierStatus
from nodeserve.wire.status import Quantiles, RequestTrace

TRACE = RequestTrace(
    request_id="a",
    listener="l",
    prompt_tokens=1,
    cached_tokens=0,
    output_tokens=2,
    finish="stop",
)


@pytest.mark.parametrize(
    "message",
    [
        StatusRequest(),
        CommandReply(detail="x"),
        WorkerHeartbeat(generation=3, steps=1 << 40, num_requests=2),
        WorkerGivenUp(generation=3, reason="does not read"),
        GatewayGivenUp(generation=4, reason="does not read"),
        DispatcherStatus(call_id=1, ttft=Quantiles(count=1, p50_ms=1.5), recent=(TRACE,)),
        KvPin(key="ab12", call_id=3),
        KvDone(call_id=3, error="nothing begins with ab12"),
        KvTierStatus(
            tiers=(KvTierLoad(name="host", hits=2), KvTierLoad(name="disk", failure="full")),
            prefixes=(KvPrefix(key="ab12", blocks=3, hits=9),),
            refused_engines={7: "another model"},
        ),
        DeviceReported(
            generation=5,
            report=DeviceReport(
                samples=(DeviceSample(meter="GPU-1", index=1, name="H100", age_s=0.1),),
                findings=(
                    Finding(
                        meter="GPU-1",
                        signal="xid_79",
                        severity="fatal",
                        action="fence",
                        detail="fallen off the bus",
                        provenance="catalog",
                        since_unix_s=1.5,
                    ),
                ),
                energy_source="nvml-counter",
            ),
        ),
    ],
)
def test_message_survives_the_wire(message: control.Message) -> None:
    assert control.decode(control.encode(message)) == message


def test_fields_of_a_newer_release_are_skipped_and_of_an_older_one_filled_in() -> None:
    newer = msgspec.msgpack.encode({"type": "CommandReply", "detail": "x", "colour": 3})
    assert control.decode(newer) == CommandReply(detail="x")
    assert control.decode(msgspec.msgpack.encode({"type": "CommandReply"})) == CommandReply()


def test_tags_are_the_names_and_all_differ() -> None:
    messages = get_args(control.Message)
    tags = [message.__struct_config__.tag for message in messages]
    assert tags == [message.__name__ for message in messages]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xa4type\xa2\xff\xfe",
        msgspec.msgpack.encode({"type": "Unknown"}),
        msgspec.msgpack.encode({"type": "WorkerHeartbeat", "generation": "x"}),
    ],
)
def test_hostile_frames_are_value_errors(frame: bytes) -> None:
    with pytest.raises(ValueError, match=f"frame of {len(frame)} bytes"):
        control.decode(frame)


def test_random_and_truncated_frames_never_raise_anything_else() -> None:
    source = random.Random(1)
    whole = control.encode(WorkerHeartbeat(generation=3, steps=4, num_requests=2))
    for _ in range(3000):
        frame = bytearray(whole[: source.randrange(len(whole) + 1)])
        for _ in range(source.randrange(3) if frame else 0):
            frame[source.randrange(len(frame))] = source.randrange(256)
        try:
            control.decode(bytes(frame))
        except ValueError:
            continue
