import pytest

from nodeserve.errors import CapacityError, ConfigError, InvariantError, PeerError
from nodeserve.wire.control import (
    ChildFailed,
    SayAgain,
    StatusRequest,
    WorkerHeartbeat,
    WorkerHello,
    WorkerProgress,
)
from nodeserve.worker.control import Reporter, cause_of


@pytest.fixture
def reporter(channel, spec):
    return Reporter(channel, spec)


def test_every_message_names_its_sender(reporter, channel, engine, ready):
    engine.steps, engine.num_requests = 7, 2
    reporter.hello(123)
    reporter.progress("loading weights")
    reporter.ready(ready)
    reporter.heartbeat(engine, next_s=0.5)
    assert channel.messages == [
        WorkerHello(name="decode-1", generation=4, pid=123),
        WorkerProgress(generation=4, phase="loading weights"),
        ready,
        WorkerHeartbeat(generation=4, steps=7, num_requests=2, next_s=0.5),
    ]


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ConfigError("x"), False),
        (CapacityError("x"), True),
        (PeerError("x"), True),
        (RuntimeError("x"), True),
    ],
)
def test_only_a_setting_that_can_never_work_is_not_retried(reporter, channel, error, retryable):
    reporter.failed(error)
    (message,) = channel.messages
    assert isinstance(message, ChildFailed)
    assert message.retryable is retryable


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConfigError("tp is 0; must be at least 1"), "tp is 0; must be at least 1"),
        (RuntimeError("CUDA error\nlong story"), "RuntimeError: CUDA error"),
        (InvariantError("block 3 twice"), "InvariantError: block 3 twice"),
        (KeyError(), "KeyError"),
    ],
)
def test_cause_is_one_line(error, cause):
    assert cause_of(error) == cause


def test_a_worker_that_is_asked_again_says_again_that_it_is_ready(reporter, channel, ready):
    channel.asked = [SayAgain()]
    reporter.answer()
    assert channel.messages == []  # it is not ready yet
    reporter.ready(ready)
    channel.asked = [SayAgain(), StatusRequest()]
    reporter.answer()
    assert channel.messages == [ready, ready]
