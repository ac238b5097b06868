import os
import signal
import subprocess
import sys

import pytest

from tests.support.daemon import gone

PROGRAM = """
import subprocess, sys
from types import SimpleNamespace
from nodeserve.supervisor.caretaker import take_care
names = ("dispatcher", "decode-0")
made = [subprocess.Popen(["sleep", "60"]) for _ in names]
children = [SimpleNamespace(name=n, pid=p.pid) for n, p in zip(names, made)]
print(*(p.pid for p in made), flush=True)
sys.exit(take_care(SimpleNamespace(children=SimpleNamespace(children=children))))
"""


@pytest.fixture
def caretaker():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = [int(word) for word in process.stdout.readline().split()]
    assert "serves on unsupervised" in process.stderr.readline()
    yield process, pids
    process.kill()
    process.communicate()


def test_a_worker_may_die_but_without_a_dispatcher_all_ends(caretaker):
    process, (dispatcher, worker) = caretaker
    os.kill(worker, signal.SIGKILL)
    assert gone(worker)
    assert process.poll() is None
    os.kill(dispatcher, signal.SIGKILL)
    assert process.wait(20) == 70
    assert "process_exited name=decode-0" in process.stderr.read()


def test_sigterm_ends_everything(caretaker):
    process, pids = caretaker
    process.terminate()
    assert process.wait(20) == 70
    assert all(gone(pid) for pid in pids)
