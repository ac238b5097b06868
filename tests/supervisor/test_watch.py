import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeserve.clock import ManualClock
from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.ids import Generation
from nodeserve.lifecycle.liveness import Sight
from nodeserve.lifecycle.messages import ProcessHeld, ProcessSick
from nodeserve.supervisor.children import Child
from nodeserve.supervisor.proc import ProcessView
from nodeserve.supervisor.watch import LOOK_EVERY_S, Watch
from nodeserve.wire.control import DispatcherHeartbeat, WorkerHeartbeat
from nodeserve.wire.kinds import Role
from nodeserve.wire.kv_control import BlockManagerHeartbeat

CONFIG = NodeConfig(
    model="/m",
    served_model_names=("m",),
    runtime_dir="/r",
    listeners=(Listener(name="api", socket="/s", gateway=GatewayKind.RUST),),
    workers=(Worker(name="decode-0", role=Role.DECODE),),
)
SLEEP = "import sys, time; print(flush=True); time.sleep(60)"


def num_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


class Watched:
    """A watch over real processes, in its own time."""

    def __init__(self):
        self.clock = ManualClock()
        self.events = []
        self.watch = Watch(CONFIG, self.clock, self.events.append)
        self.watch.look()

    def look(self, times=1):
        for _ in range(times):
            self.clock.advance(LOOK_EVERY_S)
            self.watch.look()
        return self.events

    @staticmethod
    def _wait_until_asleep(pid):
        view, pause = ProcessView(pid), threading.Event()
        while view.look(closely=True).is_runnable:
            pause.wait(0.01)
        view.close()

    @contextmanager
    def child(self, name, generation):
        running = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
        running.stdout.readline()
        self._wait_until_asleep(running.pid)
        self.watch.born(Child(name, Generation(generation), running.pid, -1, 0.0))
        try:
            yield running
        finally:
            running.kill()
            running.wait()
            running.stdout.close()
            self.watch.gone(Generation(generation))


@pytest.fixture
def watched():
    return Watched()


@pytest.mark.parametrize(
    "name", ["decode-0", "dispatcher", "gateway-api", "forkserver", "block-manager"]
)
def test_a_stopped_process_of_any_kind_is_reported_once(watched, name):
    with watched.child(name, 3) as running:
        os.kill(running.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED)
        (event,) = watched.look(times=5)
    assert isinstance(event, ProcessSick)
    assert event.generation == 3
    assert "stopped by a signal" in event.cause


@pytest.mark.parametrize(
    ("name", "beat"),
    [
        ("decode-0", WorkerHeartbeat(generation=3, steps=1, num_requests=0)),
        ("dispatcher", DispatcherHeartbeat(generation=3, next_s=0.5)),
        ("block-manager", BlockManagerHeartbeat(generation=3, next_s=0.5)),
    ],
)
def test_a_process_that_falls_silent_is_reported(watched, name, beat):
    with watched.child(name, 3):
        watched.watch.heard(beat)
        (event,) = watched.look(times=9)
    assert isinstance(event, ProcessSick)
    assert "has said nothing" in event.cause


def test_a_dispatcher_that_closes_its_sockets_for_long_is_not_called_stuck(watched):
    with watched.child("dispatcher", 3):
        watched.watch.heard(DispatcherHeartbeat(generation=3, next_s=0.5))
        watched.watch.ending(Generation(3))
        assert watched.look(times=40) == []


def test_a_process_that_beats_is_left_alone(watched):
    with watched.child("decode-0", 3):
        for steps in range(200):
            watched.watch.heard(WorkerHeartbeat(generation=3, steps=steps, num_requests=1))
            assert watched.look() == []


def test_a_killed_process_that_lives_on_is_reported_as_held(watched):
    with watched.child("decode-0", 3):
        watched.watch.killed(Generation(3))  # though no signal was sent
        (event,) = watched.look(times=20)
    assert isinstance(event, ProcessHeld)
    assert "stays out of use" in event.cause


def test_who_is_gone_is_not_looked_at(watched):
    before = num_open_files()
    with watched.child("decode-0", 3):
        pass
    assert watched.look(times=20) == []
    assert num_open_files() == before


async def test_a_look_that_fails_is_not_the_last(watched, caplog, monkeypatch):
    looks = []

    def look():
        looks.append(len(looks))
        if len(looks) == 1:
            raise RuntimeError("no /proc")
        raise asyncio.CancelledError

    monkeypatch.setattr(watched.watch, "look", look)
    with pytest.raises(asyncio.CancelledError):
        await watched.watch.run()
    assert looks == [0, 1]
    assert "look_failed" in caplog.messages


def test_a_worker_without_a_gpu_may_compute_for_long(watched, monkeypatch):
    shown = [0.0]
    monkeypatch.setattr(
        "nodeserve.supervisor.watch.ProcessView.look", lambda _, closely: Sight(cpu_s=shown[0])
    )
    with watched.child("decode-0", 3):
        for steps in range(30):
            watched.watch.heard(WorkerHeartbeat(generation=3, steps=steps, num_requests=1))
            watched.look()
        for _ in range(100):  # twenty seconds, twice as long as a step may take on a GPU
            shown[0] += LOOK_EVERY_S
            watched.watch.heard(WorkerHeartbeat(generation=3, steps=29, num_requests=1))
            assert watched.look() == []
