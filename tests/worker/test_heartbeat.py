import threading

from nodeserve.wire.control import SayAgain, SetWorkerRole, WorkerHeartbeat
from nodeserve.wire.kinds import Role
from nodeserve.worker.control import Reporter
from nodeserve.worker.heartbeat import IDLE_INTERVALS, Heartbeat


def test_first_heartbeat_comes_at_once_and_carries_the_counters(channel, spec, engine):
    engine.steps, engine.num_requests = 5, 1
    with Heartbeat(Reporter(channel, spec), engine, interval_s=60):
        assert channel.wait_for(1) == [
            WorkerHeartbeat(generation=4, steps=5, num_requests=1, next_s=60)
        ]


def test_an_engine_without_work_is_reported_less_often_and_says_so(channel, spec, engine):
    engine.num_requests = 0
    with Heartbeat(Reporter(channel, spec), engine, interval_s=60):
        (message,) = channel.wait_for(1)
    assert message.next_s == 60 * IDLE_INTERVALS


def test_heartbeats_go_on_while_the_engine_stands_still(channel, spec, engine):
    with Heartbeat(Reporter(channel, spec), engine, interval_s=0.001):
        messages = channel.wait_for(3)
    assert len(set(map(repr, messages))) == 1


def test_leaving_ends_the_thread(channel, spec, engine):
    with Heartbeat(Reporter(channel, spec), engine, interval_s=60):
        channel.wait_for(1)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_full_channel_does_not_end_the_heartbeats(channel, spec, engine, caplog):
    channel.is_full = True
    with Heartbeat(Reporter(channel, spec), engine, interval_s=0.001):
        with channel.came:
            channel.is_full = False
        channel.wait_for(1)


def test_what_the_supervisor_has_missed_is_said_again(channel, spec, engine, ready):
    reporter = Reporter(channel, spec)
    reporter.ready(ready)
    channel.asked = [SayAgain()]
    with Heartbeat(reporter, engine, interval_s=60):
        assert channel.wait_for(3)[2] == ready


def test_what_is_to_be_done_beside_is_done_with_each_heartbeat(channel, spec, engine):
    called = threading.Event()
    with Heartbeat(Reporter(channel, spec), engine, interval_s=60, beside=called.set):
        assert called.wait(10)


def test_a_change_of_role_is_taken_note_of(channel, spec, engine):
    reporter = Reporter(channel, spec)
    channel.asked = [SetWorkerRole(generation=4, role=Role.PREFILL)]
    with Heartbeat(reporter, engine, interval_s=60):
        channel.wait_for(1)
    assert reporter.role is Role.PREFILL
