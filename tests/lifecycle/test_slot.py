import pytest

from nodeserve.errors import RequestError
from nodeserve.ids import Generation
from nodeserve.lifecycle.process import BecameReady, StartRequested
from nodeserve.lifecycle.slot import AfterStop, Slot, SlotPlan
from nodeserve.wire.control import WireFields, WorkerReady
from nodeserve.wire.kinds import ProcessKind, Role


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


def test_every_incarnation_after_the_first_is_a_restart():
    slot = Slot(SlotPlan("decode-0", ProcessKind.WORKER))
    counts = [slot.restarts]
    for generation in (3, 7, 9):
        slot.begin(Generation(generation))
        counts.append(slot.restarts)
    assert counts == [0, 0, 1, 2]


def test_a_draining_worker_says_so_only_while_it_runs():
    slot = Slot(SlotPlan("decode-0", ProcessKind.WORKER))
    slot.draining = True
    assert slot.state() == "down"
    slot.life.handle(StartRequested(), now_s=0.0)
    slot.life.handle(BecameReady(), now_s=0.0)
    assert slot.state() == "draining"


def engine(*features):
    return WorkerReady(
        name="w-0",
        generation=1,
        fields=WireFields(request=(), outputs=(), output=(), vllm_version="1"),
        ready=b"",
        block_size=16,
        num_gpu_blocks=100,
        kv_block_bytes=1,
        max_model_len=100,
        features=features,
    )


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_only_an_engine_that_hands_over_may_prefill_or_decode_alone(role):
    slot = Slot(SlotPlan("w-0", ProcessKind.WORKER))
    with pytest.raises(RequestError, match="worker w-0 is down; wait until it is ready"):
        slot.require_role(role)
    slot.ready = engine()
    with pytest.raises(RequestError, match=f"worker w-0 cannot {role}.*leave it aggregated"):
        slot.require_role(role)
    slot.ready = engine("handoff")
    slot.require_role(role)


@pytest.mark.parametrize("ready", [None, engine(), engine("handoff")])
def test_any_engine_may_do_both(ready):
    slot = Slot(SlotPlan("w-0", ProcessKind.WORKER))
    slot.ready = ready
    slot.require_role(Role.AGGREGATED)
