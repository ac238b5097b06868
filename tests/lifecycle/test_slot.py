from nodeserve.ids import Generation
from nodeserve.lifecycle.process import BecameReady, StartRequested
from nodeserve.lifecycle.slot import AfterStop, Slot, SlotPlan
from nodeserve.wire.control import ProcessKind


def test_a_new_incarnation_inherits_nothing_of_the_last_ones_drain():
    slot = Slot(SlotPlan("decode-0", ProcessKind.WORKER))
    slot.attached = slot.draining = True
    slot.detail, slot.after_stop = "killed", AfterStop.START_AGAIN
    slot.begin(Generation(7))
    assert slot.generation == 7
    assert not slot.attached
    assert not slot.draining
    assert slot.detail is None
    assert slot.after_stop is AfterStop.STAY_DOWN


def test_a_draining_worker_says_so_only_while_it_runs():
    slot = Slot(SlotPlan("decode-0", ProcessKind.WORKER))
    slot.draining = True
    assert slot.state() == "down"
    slot.life.handle(StartRequested(), now_s=0.0)
    slot.life.handle(BecameReady(), now_s=0.0)
    assert slot.state() == "draining"
