"""The supervisor's death ends every process of the node, whenever it comes."""

import contextlib
import os
import signal
import threading
import uuid
from pathlib import Path

import pytest

from nodeserve.wire.control import DrainRequest
from tests.e2e.conftest import REAL, SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

MARK = "NODESERVE_TEST_MARK"


def marked(mark):
    """Return the live processes that were started with a mark in their environment, and what."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started_with = (folder / "environ").read_bytes()
            state = (folder / "stat").read_bytes().rpartition(b")")[2].split()[0]
            if f"{MARK}={mark}".encode() in started_with and state not in b"ZX":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
    found.pop(os.getpid(), None)
    return found


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir() if "sem." not in path.name}


@pytest.fixture
def mark(monkeypatch):
    made = uuid.uuid4().hex
    monkeypatch.setenv(MARK, made)
    return made


def starting(node):
    node.wait_for_line("worker_starting")


def serving(node):
    node.wait_ready()
    Stream(node, node.model, PROMPTS[0], max_tokens=400).wait_for(5)


def restarting_a_worker(node):
    node.wait_ready()
    node.kill("decode-0")
    node.wait_for_line("process_restarting name=decode-0")


def draining(node):
    serving(node)
    threading.Thread(target=node.command, args=(DrainRequest(),), daemon=True).start()
    node.wait_for_line("node_draining")


@pytest.mark.parametrize("phase", [starting, serving, restarting_a_worker, draining])
def test_a_killed_supervisor_leaves_nobody_and_the_next_takes_over(
    tiny_model, tmp_path, mark, phase
):
    words = (str(tiny_model), *SIMULATED, "--speedup", "0.1")
    before = shared_memory()
    with daemon(tmp_path, *words) as node:
        phase(node)
        assert node.process.pid in marked(mark)
        node.process.kill()
        node.process.wait()
        pause = threading.Event()
        assert any(not marked(mark) or pause.wait(0.02) for _ in range(500)), marked(mark)
    assert shared_memory() <= before
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert node.stop() == 0
    assert marked(mark) == {}
    assert list(tmp_path.iterdir()) == []


def family(pid):
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def test_ranks_end_with_a_killed_supervisor_whatever_they_wait_for(tiny_model, tmp_path):
    """One that is stopped hears of nothing, and another one may wait for it in a collective."""
    words = (str(tiny_model), "--aggregated", "1", "--tp-decode", "2", *REAL)
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        everybody = family(node.process.pid)
        ranks = [pid for pid in everybody if b"VLLM::" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGSTOP)
        node.process.kill()
        node.process.wait()
        assert all(gone(pid) for pid in everybody)
