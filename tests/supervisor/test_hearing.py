import pytest

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    NodeEmptied,
    ProcessReady,
    ProcessSick,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import Slot, SlotPlan
from nodeserve.supervisor.hearing import beaten, event_of, may_say
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported, HealthClear
from nodeserve.wire.device_report import DeviceReport
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import (
    BlockManagerHeartbeat,
    BlockManagerReady,
    KvClear,
    KvDone,
    KvTierStatus,
    KvTierStatusRequest,
)


def a_slot(name, kind, generation):
    return Slot(SlotPlan(name, kind), generation=Generation(generation))


SLOTS = {
    "dispatcher": a_slot("dispatcher", ProcessKind.DISPATCHER, 2),
    "block-manager": a_slot("block-manager", ProcessKind.BLOCK_MANAGER, 3),
}


@pytest.mark.parametrize(
    ("identity", "message", "allowed"),
    [
        (b"2", control.WorkerServing(generation=5), True),
        (b"5", control.WorkerServing(generation=5), False),
        (b"5", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), True),
        (b"6", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), False),
        (b"c1", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), False),
        (b"c1", control.ReloadRequest(), True),
        (b"5", control.ReloadRequest(), False),
    ],
)
def test_a_child_speaks_for_itself_and_the_dispatcher_for_routing(identity, message, allowed):
    assert may_say(identity, message, SLOTS) is allowed


@pytest.mark.parametrize(
    ("identity", "generation", "allowed"),
    [(b"7", 7, True), (b"7", 8, False), (b"8", 8, False), (b"c1", 7, False)],
)
def test_the_present_monitor_speaks_of_devices(identity, generation, allowed):
    slots = SLOTS | {"monitor": a_slot("monitor", ProcessKind.MONITOR, 7)}
    message = DeviceReported(generation=generation, report=DeviceReport())
    assert may_say(identity, message, slots) is allowed


def test_an_operator_clears_findings_and_no_child_does():
    assert may_say(b"c1", HealthClear(), SLOTS)
    assert not may_say(b"2", HealthClear(), SLOTS)


@pytest.mark.parametrize(
    ("identity", "message", "allowed"),
    [
        (b"3", KvTierStatus(), True),
        (b"2", KvTierStatus(), False),
        (b"c1", KvDone(), False),
        (b"3", BlockManagerReady(generation=3, pid=1), True),
        (b"4", BlockManagerHeartbeat(generation=3), False),
        (b"c1", KvTierStatusRequest(), True),
        (b"3", KvClear(), False),
    ],
)
def test_the_block_manager_speaks_for_the_tiers(identity, message, allowed):
    assert may_say(identity, message, SLOTS) is allowed


def test_nobody_speaks_for_tiers_that_are_not_there():
    slots = {"dispatcher": SLOTS["dispatcher"]}
    assert not may_say(b"3", KvTierStatus(), slots)
    assert not may_say(b"None", KvDone(), slots)


def test_a_block_manager_that_beats_before_it_is_ready_has_missed_us():
    slot = a_slot("block-manager", ProcessKind.BLOCK_MANAGER, 3)
    beat = BlockManagerHeartbeat(generation=3)
    slot.life.phase = Phase.STARTING
    assert beaten(slot, beat)
    slot.life.phase = Phase.READY
    assert not beaten(slot, beat)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (control.DispatcherReady(generation=2, pid=1), ProcessReady(Generation(2))),
        (BlockManagerReady(generation=3, pid=1), ProcessReady(Generation(3))),
        (control.WorkerServing(generation=5), WorkerRouted(Generation(5))),
        (control.WorkerDrained(generation=5), WorkerEmptied(Generation(5))),
        (control.NodeDrained(), NodeEmptied()),
        (
            control.GatewayGivenUp(generation=7, reason="it does not read"),
            ProcessSick(Generation(7), "given up by the dispatcher: it does not read"),
        ),
        (control.StatusRequest(), None),
    ],
)
def test_what_is_heard_becomes_an_event_of_the_node(message, event):
    assert event_of(message) == event
