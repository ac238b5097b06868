import pytest

from nodeserve.lifecycle.process import BecameReady, StartRequested
from nodeserve.lifecycle.shutdown import daemon_exit_code, next_to_stop
from nodeserve.lifecycle.slot import Slot, SlotPlan
from nodeserve.wire.kinds import ProcessKind


def running(name, kind):
    slot = Slot(SlotPlan(name, kind))
    slot.life.handle(StartRequested(), now_s=0.0)
    slot.life.handle(BecameReady(), now_s=0.0)
    return slot


def test_nobody_outlives_who_it_talks_to_and_fork_servers_end_last():
    slots = [
        running("f", ProcessKind.FORKSERVER),
        running("w", ProcessKind.WORKER),
        running("d", ProcessKind.DISPATCHER),
        running("b", ProcessKind.BLOCK_MANAGER),
        running("g", ProcessKind.GATEWAY),
    ]
    order = []
    while left := next_to_stop(slots):
        order.append(sorted(slot.name for slot in left))
        slots = [slot for slot in slots if slot not in left]
    assert order == [["g"], ["d", "w"], ["b"], ["f"]]


def test_what_never_started_is_not_waited_for():
    assert next_to_stop([Slot(SlotPlan("w", ProcessKind.WORKER))]) == []


@pytest.mark.parametrize(("code", "told"), [(75, 75), (78, 78), (1, 69), (0, 69), (137, 69)])
def test_the_daemon_ends_with_a_code_that_says_what_to_do(code, told):
    assert daemon_exit_code(code) == told
