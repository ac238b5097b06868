"""What goes to the ledger and back."""

import pytest

from nodeserve.wire import accounting
from nodeserve.wire.accounting import (
    EndedLeg,
    EndedRequest,
    EngineHello,
    LedgerAck,
    LedgerHello,
    ListenerUse,
    Member,
    Meter,
    MetersHello,
    MetersRead,
    Reading,
    RequestsNoted,
    StartedRequest,
    StepLog,
    StepRun,
    UseReported,
    WorkShape,
)
from nodeserve.wire.kinds import Role

TO_LEDGER = [
    MetersHello(generation=1, meters=(Meter(meter="G", kind="gpu", name="H", source="s"),)),
    MetersRead(
        generation=1,
        at_s=1.5,
        at_unix_s=2.5,
        readings=(Reading(meter="G", counter_mj=None), Reading(meter="H", counter_mj=2**60)),
    ),
    EngineHello(
        worker="decode-0",
        generation=3,
        role=Role.DECODE,
        meters=("G",),
        work=WorkShape(
            token_flops=1.0,
            pair_flops=2.0,
            kv_bytes=3.0,
            weight_bytes=4.0,
            flops_per_s=5.0,
            bytes_per_s=6.0,
        ),
    ),
    StepLog(
        generation=3,
        seq=1,
        role=Role.PREFILL,
        begin_s=1.0,
        end_s=2.0,
        batch=(Member("d1-1.1", 1, 100),),
        runs=(StepRun(1.5, 3, 0.25, (Member("d1-2.1", 1, 5),), ("d1-1.1",)),),
    ),
    RequestsNoted(
        generation=9,
        seq=4,
        started=(StartedRequest("d1-1", "cmpl-x", "chat", "m", 1.0),),
        ended=(
            EndedRequest(
                request_id="d1-1",
                wire_id="cmpl-x",
                listener="chat",
                model="m",
                outcome="stop",
                arrived_unix_s=1.0,
                ended_unix_s=2.0,
                prompt_tokens=3,
                legs=(EndedLeg("d1-1.1", "decode-0", "decode", False),),
            ),
        ),
    ),
]

FROM_LEDGER = [
    LedgerHello(generation=5),
    LedgerAck(seq=7),
    UseReported(uses=(ListenerUse(listener="chat", energy_mj=None, period_ends_unix_s=3.0),)),
]


@pytest.mark.parametrize("message", TO_LEDGER, ids=lambda message: type(message).__name__)
def test_what_is_said_to_the_ledger_comes_back_as_it_was(message):
    frame = accounting.encode_message(message)
    assert accounting.decode_to_ledger(frame) == message
    with pytest.raises(ValueError, match="message of the ledger"):
        accounting.decode_from_ledger(frame)


@pytest.mark.parametrize("message", FROM_LEDGER, ids=lambda message: type(message).__name__)
def test_what_the_ledger_says_comes_back_as_it_was(message):
    frame = accounting.encode_message(message)
    assert accounting.decode_from_ledger(frame) == message
    with pytest.raises(ValueError, match="message to the ledger"):
        accounting.decode_to_ledger(frame)


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x90", b"\x81\xa4type\xa3Bad", b"\x93" * 5000])
def test_nonsense_is_no_message(frame):
    with pytest.raises(ValueError, match="cannot be read"):
        accounting.decode_to_ledger(frame)
