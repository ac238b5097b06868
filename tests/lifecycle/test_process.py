import itertools

import pytest

from nodeserve.errors import InvalidTransitionError
from nodeserve.lifecycle.process import (
    TRANSITIONS,
    BecameReady,
    Exited,
    Kill,
    Phase,
    ProcessLife,
    Spawn,
    StartRequested,
    StopRequested,
    Terminate,
    TimeElapsed,
)
from nodeserve.lifecycle.restart import RestartHistory, RestartPolicy

EVENTS = [StartRequested(), BecameReady(), StopRequested(grace_s=5), Exited(), TimeElapsed()]


def in_phase(phase):
    life = ProcessLife(RestartHistory(RestartPolicy(first_delay_s=0.5)))
    way = {
        Phase.DOWN: [],
        Phase.STARTING: [StartRequested()],
        Phase.READY: [StartRequested(), BecameReady()],
        Phase.STOPPING: [StartRequested(), StopRequested(grace_s=5)],
        Phase.BACKOFF: [StartRequested(), Exited()],
        Phase.FAILED: [StartRequested(), Exited(retryable=False)],
    }
    for event in way[phase]:
        life.handle(event, now_s=0.0)
    assert life.phase is phase
    return life


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)))
def test_the_table_says_what_each_phase_makes_of_each_event(phase, event):
    life = in_phase(phase)
    before = life.wake_at_s
    after = TRANSITIONS.get((phase, type(event)))
    if after is None:
        with pytest.raises(InvalidTransitionError):
            life.handle(event, now_s=1.0)
        assert (life.phase, life.wake_at_s) == (phase, before)
    else:
        life.handle(event, now_s=1.0)
        assert life.phase is after
    life.check()


def test_crash_while_ready_waits_then_spawns_again():
    life = in_phase(Phase.READY)
    assert life.handle(Exited(), now_s=10.0) == []
    assert life.wake_at_s == 10.0
    assert life.handle(TimeElapsed(), now_s=10.0) == [Spawn()]
    assert life.phase is Phase.STARTING
    life.handle(Exited(), now_s=11.0)
    assert life.wake_at_s == 11.5


def test_an_exit_that_cannot_be_retried_waits_for_an_operator():
    life = in_phase(Phase.STARTING)
    life.handle(Exited(retryable=False), now_s=1.0)
    assert life.phase is Phase.FAILED
    assert life.handle(StartRequested(), now_s=2.0) == [Spawn()]


def test_a_crash_loop_ends_in_failed():
    life = ProcessLife(RestartHistory(RestartPolicy(max_deaths=2)))
    life.handle(StartRequested(), now_s=0.0)
    for _ in range(2):
        life.handle(Exited(), now_s=1.0)
        life.handle(TimeElapsed(), now_s=2.0)
    life.handle(Exited(), now_s=3.0)
    assert life.phase is Phase.FAILED


def test_a_stop_is_asked_for_then_forced():
    life = in_phase(Phase.READY)
    assert life.handle(StopRequested(grace_s=5), now_s=1.0) == [Terminate()]
    assert life.wake_at_s == 6.0
    assert life.handle(TimeElapsed(), now_s=6.0) == [Kill()]
    assert life.handle(Exited(), now_s=6.1) == []
    assert life.phase is Phase.DOWN


def test_a_stop_without_grace_kills_at_once_also_while_stopping():
    life = in_phase(Phase.STOPPING)
    assert life.handle(StopRequested(grace_s=0), now_s=1.0) == [Kill()]


def test_a_late_ready_does_not_stop_the_kill_timer():
    life = in_phase(Phase.STOPPING)
    life.handle(BecameReady(), now_s=1.0)
    assert life.wake_at_s == 5.0
