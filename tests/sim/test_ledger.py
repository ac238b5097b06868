import pytest

from nodeserve.sim.ledger import SimLedger
from nodeserve.sim.story import RuleBrokenError
from nodeserve.wire.accounting import (
    EndedLeg,
    EndedRequest,
    LedgerAck,
    RequestsNoted,
    StartedRequest,
    decode_from_ledger,
    encode_message,
)

STARTED = StartedRequest("d1-1", "w", "api", "m", 1.0)
LEG = EndedLeg("d1-1.1", "w", "decode", False)


def ended(**changes):
    fields = {
        "request_id": "d1-1",
        "wire_id": "w",
        "listener": "api",
        "model": "m",
        "outcome": "stop",
        "arrived_unix_s": 1.0,
        "ended_unix_s": 2.0,
        "prompt_tokens": 5,
        "output_tokens": 3,
        "legs": (LEG,),
    }
    return EndedRequest(**(fields | changes))


def note(ledger, seq, *over, started=()):
    ledger.send(
        encode_message(RequestsNoted(generation=1, seq=seq, started=tuple(started), ended=over))
    )


def test_what_is_said_is_acknowledged_and_what_is_said_again_dropped():
    ledger = SimLedger()
    note(ledger, 1, ended(), started=[STARTED])
    note(ledger, 1, ended())
    assert decode_from_ledger(ledger.recv()) == LedgerAck(seq=1)
    assert ledger.recv() is None
    ledger.check_end()


def test_an_end_that_is_not_booked_is_found():
    ledger = SimLedger()
    note(ledger, 1, started=[STARTED])
    with pytest.raises(RuleBrokenError, match="every end is booked"):
        ledger.check_end()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"legs": ()}, "with its own legs"),
        ({"legs": (LEG, LEG)}, "with its own legs"),
        ({"request_id": "d1-2"}, "with its own legs"),
        ({"outcome": "abort"}, "is of use, other things not"),
        ({"output_tokens": 0}, "is of use, other things not"),
        ({"legs": (EndedLeg("d1-1.1", "w", "decode", True),)}, "is of use, other things not"),
    ],
)
def test_what_cannot_be_is_found(changes, rule):
    with pytest.raises(RuleBrokenError, match=rule):
        note(SimLedger(), 1, ended(**changes))


def test_a_request_that_ends_twice_is_found():
    ledger = SimLedger()
    note(ledger, 1, ended())
    with pytest.raises(RuleBrokenError, match="booked once"):
        note(ledger, 2, ended())
