import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodeserve.supervisor.cgroup import ControlGroup
from nodeserve.supervisor.family import Family

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent():
    running = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    yield running
    running.kill()
    running.wait()
    running.stdout.close()


def is_alive(pid):
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return False


def eventually(what):
    pause = threading.Event()
    return any(what() or pause.wait(0.01) for _ in range(1000))


def test_what_a_dead_child_had_started_is_killed_with_it(parent):
    child = int(parent.stdout.readline())
    family = Family(parent.pid, None)
    assert not family.is_gone()
    family.kill()
    assert parent.wait() == -signal.SIGKILL
    assert eventually(lambda: not is_alive(child))
    family.kill()  # nobody is there: no error


def test_a_family_without_a_group_is_gone_when_its_process_group_is_empty():
    alone = subprocess.Popen(["sleep", "60"], start_new_session=True)
    family = Family(alone.pid, None)
    assert not family.is_gone()
    family.kill()
    alone.wait()
    assert family.is_gone()
    assert family.ran_out_of_memory() is None
    family.forget()


def test_a_family_with_a_group_is_gone_when_the_group_is_empty(tmp_path):
    group = ControlGroup(tmp_path / "w-3")
    group.path.mkdir()
    family = Family(2**22 - 1, group)
    (group.path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (group.path / "memory.events").write_text("oom 1\noom_kill 2\n")
    assert not family.is_gone()
    assert family.ran_out_of_memory() is True
    family.kill()
    assert (group.path / "cgroup.kill").read_text() == "1"
    (group.path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert family.is_gone()
    for file in group.path.iterdir():
        file.unlink()
    family.forget()
    assert not group.path.exists()
