import os
import signal
import threading

import pytest

from nodeserve.errors import ConfigError
from nodeserve.wire.control import ChildFailed, WorkerHeartbeat, WorkerHello, WorkerProgress
from nodeserve.worker.control import Reporter
from nodeserve.worker.main import serve


@pytest.fixture(autouse=True)
def restored_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def factory(engine):
    def make(spec, progress):
        progress("loading")
        return engine

    return make


def test_worker_says_hello_then_progress_then_ready_then_its_heart_beats(
    channel, spec, engine, factory, ready
):
    engine.stopped.set()
    serve(spec, Reporter(channel, spec), factory)
    assert engine.calls == ["start", "run"]
    assert channel.messages[:4] == [
        WorkerHello(name="decode-1", generation=4, pid=os.getpid()),
        WorkerProgress(generation=4, phase="loading"),
        ready,
        WorkerHeartbeat(generation=4, steps=0, num_requests=0, next_s=1.0),
    ]


def test_sigterm_while_serving_stops_the_engine_and_returns(channel, spec, engine, factory):
    def end_when_beating():
        channel.wait_for(4)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_when_beating)
    thread.start()
    serve(spec, Reporter(channel, spec), factory)
    thread.join()
    assert engine.stopped.is_set()
    assert not any(isinstance(message, ChildFailed) for message in channel.messages)


def test_sigterm_while_loading_leaves_at_once_without_a_failure(channel, spec, engine, factory):
    engine.on_start = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as raised:
        serve(spec, Reporter(channel, spec), factory)
    assert raised.value.code == 0
    assert not any(isinstance(message, ChildFailed) for message in channel.messages)


def test_failure_to_start_is_reported_and_raised(channel, spec, engine, factory):
    def refuse():
        raise ConfigError("worker decode-1: tp is 0; must be at least 1")

    engine.on_start = refuse
    with pytest.raises(ConfigError):
        serve(spec, Reporter(channel, spec), factory)
    assert channel.messages[-1] == ChildFailed(
        generation=4, cause="worker decode-1: tp is 0; must be at least 1", retryable=False
    )


def test_engine_that_dies_while_serving_is_reported_as_worth_a_retry(
    channel, spec, engine, factory
):
    engine.run_error = RuntimeError("device lost")
    with pytest.raises(RuntimeError):
        serve(spec, Reporter(channel, spec), factory)
    assert channel.messages[-1] == ChildFailed(generation=4, cause="RuntimeError: device lost")


def test_failure_is_raised_also_when_nobody_can_be_told(channel, spec, engine, factory):
    engine.run_error = RuntimeError("device lost")

    class Deaf(Reporter):
        def failed(self, error):
            channel.is_full = True
            super().failed(error)

    with pytest.raises(RuntimeError, match="device lost"):
        serve(spec, Deaf(channel, spec), factory)
