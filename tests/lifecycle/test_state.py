from nodeserve.lifecycle.messages import (
    NodeStarted,
    ProcessExited,
    ProcessReady,
    SpawnProcess,
    TimeElapsed,
)
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.lifecycle.state import NodePhase
from nodeserve.wire.kinds import ProcessKind

PLANS = [
    SlotPlan("forkserver", ProcessKind.FORKSERVER),
    SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
]


def test_another_life_goes_on_where_one_stopped():
    first = NodeLife(PLANS, Patience())
    first.handle(NodeStarted(), now_s=0.0)
    first.handle(ProcessReady(first.slots["forkserver"].generation), now_s=1.0)
    generation = first.slots["dispatcher"].generation
    first.handle(ProcessReady(generation), now_s=2.0)
    assert first.phase is NodePhase.READY
    first.handle(ProcessExited(generation, "it crashed", True, 1), now_s=3.0)
    second = NodeLife((), Patience(), first.kept)
    assert (second.phase, second.state, second.detail) == (first.phase, "unavailable", first.detail)
    assert second.wake_at_s == first.wake_at_s
    (again,) = second.handle(TimeElapsed(), now_s=second.wake_at_s)
    assert again == SpawnProcess("dispatcher", generation + 1)
    second.check()
