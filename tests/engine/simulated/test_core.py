"""Claims about the engine between its sockets: what it says to what it is told."""

import msgspec
import pytest

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.core import EngineCore
from tests.engine.simulated.conftest import VOCABULARY, make_limits, make_request

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


@pytest.fixture
def core():
    made = EngineCore(make_limits(), VOCABULARY, max_model_len=300)
    yield made
    made.scheduler.check()


def add(core, request_id="a", **sampling):
    core.take([wire.ADD, encode(make_request(request_id, [1, 2, 3, 4], **sampling))], 1.0)


def said(core):
    return decode(core.outbox.popleft())


def step(core):
    assert core.scheduler.plan(2.0)
    core.finish_step(3.0)


def test_step_says_one_message_with_every_output(core):
    add(core, "a", max_tokens=1)
    add(core, "b", max_tokens=2)
    step(core)
    generation, rows, stats, at_s, *_ = said(core)
    assert (generation, at_s, stats["num_running_reqs"]) == (3, 3.0, 1)
    assert [(row[0], row[wire.FINISH_REASON]) for row in rows] == [
        ("a", wire.FINISH_LENGTH),
        ("b", None),
    ]
    assert not core.outbox


def test_aborted_request_is_over_and_what_is_free_is_said_once(core):
    add(core, max_tokens=9)
    step(core)
    core.outbox.clear()
    core.take([wire.ABORT, encode(["a", "unknown"])], 4.0)
    assert not core.scheduler.plan(4.0)
    core.say_what_is_free(4.0)
    core.say_what_is_free(4.0)
    _, rows, stats, *_ = said(core)
    assert (rows, stats["kv_cache_usage"], len(core.outbox)) == ([], 0.0, 0)


def test_call_is_answered_under_its_number(core):
    core.take([wire.UTILITY, encode((0, 7, "is_sleeping", []))], 1.0)
    assert said(core)[4] == [7, None, [None, False]]


def test_request_that_cannot_be_read_is_refused_by_its_name(core):
    with pytest.raises(msgspec.MsgspecError):
        core.take([wire.ADD, encode(["a", "no tokens"])], 1.0)
    (row,) = said(core)[1]
    assert (row[0], row[wire.FINISH_REASON]) == ("a", wire.FINISH_ERROR)


def test_cache_events_are_numbered_without_gaps(core):
    assert core.take_kv_events(5.0) is None
    for number in range(2):
        core.take([wire.ADD, encode(make_request("a", [number] * 4, max_tokens=1))], 1.0)
        step(core)
        topic, sequence, payload = core.take_kv_events(5.0)
        assert (topic, int.from_bytes(sequence, "big")) == (b"", number)
        assert decode(payload)[0] == 5.0
