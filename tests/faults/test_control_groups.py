"""With a delegated control group nobody escapes: not by leaving the session either."""

import os
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.support.daemon import Daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


def own_groups():
    """Return where groups are, and the path of our own below it."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = [line[4:] for line in lines if line.startswith("0::/")]
    if not points or not paths:
        pytest.skip("this machine has no cgroup2")
    return Path(points[0]), Path(points[0]) / paths[0]


@pytest.fixture
def delegated():
    """A group that is marked as systemd marks one that it leaves to its service."""
    top, _ = own_groups()
    group = top / f"nodeserve-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        os.setxattr(group, "user.delegate", b"1")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    for below in group.iterdir():
        if below.is_dir():
            below.rmdir()
    group.rmdir()


@pytest.fixture
def node(delegated, tiny_model, tmp_path):
    """A node born in that group."""
    _, before = own_groups()
    (delegated / "cgroup.procs").write_text(str(os.getpid()))
    try:
        running = Daemon(tmp_path / "api.sock", [str(tiny_model), *SIMULATED])
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield running.wait_ready()
        assert running.stop() == 0
    finally:
        running.close()


def groups_in(folder):
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_each_process_has_its_own_group_and_takes_its_strays_along(node, delegated):
    named = {f"{p.name}-{p.generation}" for p in node.status().processes if p.generation}
    assert groups_in(delegated) == named | {"supervisor"}
    worker = node.process_named("decode-0")
    group = delegated / f"decode-0-{worker.generation}"
    assert (group / "cgroup.procs").read_text().split() == [str(worker.pid)]
    stray = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (group / "cgroup.procs").write_text(str(stray.pid))
    node.kill("decode-0")
    assert gone(stray.pid)
    stray.wait()
    node.wait_until(
        lambda status: any(
            p.name == "decode-0" and p.generation > worker.generation and p.state == "ready"
            for p in status.processes
        )
    )
    pause = threading.Event()
    assert any(not group.exists() or pause.wait(0.01) for _ in range(500))


def test_a_node_that_ends_leaves_no_group_but_its_own(node, delegated):
    assert node.stop() == 0
    assert groups_in(delegated) == {"supervisor"}
