import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeserve.lifecycle.liveness import Sight
from nodeserve.supervisor.proc import ProcessView

SLEEP = "import time; time.sleep(60)"
SPIN = "import threading; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])
print(child.pid, flush=True)
child.wait()
"""


def num_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def process(program):
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


@contextlib.contextmanager
def view(pid):
    made = ProcessView(pid)
    try:
        yield made
    finally:
        made.close()


def eventually(look, what):
    """Return whether it comes true; the state of a process has no event to wait for."""
    pause = threading.Event()
    return any(what(look()) or pause.wait(0.01) for _ in range(1000))


def test_a_stopped_process_is_seen_as_one_until_it_goes_on():
    with process(SLEEP) as running, view(running.pid) as shown:
        running.send_signal(signal.SIGSTOP)
        assert eventually(shown.look, lambda sight: sight.is_stopped)
        running.send_signal(signal.SIGCONT)
        assert eventually(shown.look, lambda sight: not sight.is_stopped)


def test_a_thread_that_runs_is_seen_at_a_close_look_and_in_the_time_used():
    with process(SPIN) as running, view(running.pid) as shown:
        assert eventually(lambda: shown.look(closely=True), lambda sight: sight.is_runnable)
        assert eventually(shown.look, lambda sight: sight.cpu_s > 0.2)


def test_a_sleeping_process_neither_runs_nor_is_stopped():
    with process(SLEEP) as running, view(running.pid) as shown:
        calm = {"is_stopped": False, "is_held": False, "is_runnable": False}
        assert eventually(
            lambda: shown.look(closely=True),
            lambda sight: {name: getattr(sight, name) for name in calm} == calm,
        )


def test_a_stopped_descendant_stops_the_whole():
    with process(PARENT) as running, view(running.pid) as shown:
        child = int(running.stdout.readline())
        shown.find_descendants()
        os.kill(child, signal.SIGSTOP)
        assert eventually(shown.look, lambda sight: sight.is_stopped)
        os.kill(child, signal.SIGKILL)
        running.wait()
        shown.find_descendants()
        assert not shown.look().is_stopped


def test_of_a_process_that_is_gone_nothing_is_shown():
    with process(SLEEP) as running, view(running.pid) as shown:
        running.kill()
        running.wait()
        assert shown.look(closely=True) == Sight()
    with view(running.pid) as shown:
        shown.find_descendants()
        assert shown.look() == Sight()


@pytest.mark.parametrize("times", [1, 2])
def test_closing_leaves_no_file_open(times):
    before = num_open_files()
    shown = ProcessView(os.getpid())
    shown.find_descendants()
    for _ in range(times):
        shown.close()
    assert num_open_files() == before
