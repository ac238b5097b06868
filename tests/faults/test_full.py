"""No room on the disk for logs, no process left to fork: the node serves on and says so."""

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "s"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Leave not a byte."""
    file = folder / "ballast"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(b"x" * 4096)
    assert os.statvfs(folder).f_bfree == 0
    return file


def comes_back(node, name, generation):
    node.wait_until(
        lambda status: any(
            p.name == name and p.state == "ready" and p.generation > generation
            for p in status.processes
        )
    )


def test_a_node_without_room_for_logs_serves_on_and_restarts_its_workers(tiny_model, small_disk):
    with daemon(small_disk, str(tiny_model), *SIMULATED, "--speedup", "0.1") as node:
        node.wait_ready()
        streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_for(5)
        ballast = fill(small_disk)
        for name in ("decode-0", "gateway-api"):
            if name == "gateway-api":  # its streams have ended by then
                assert {stream.end()[1] for stream in streams} == {"length"}
            before = node.process_named(name).generation
            assert gone(node.kill(name))
            comes_back(node, name, before)
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
        ballast.unlink()
        before = node.process_named("decode-1").generation
        assert gone(node.kill("decode-1"))
        comes_back(node, "decode-1", before)
        log = small_disk / "api.sock.d" / "logs" / "decode-1.log"
        assert f"generation={node.process_named('decode-1').generation}" in log.read_text()
        assert node.stop() == 0


@pytest.fixture
def few_processes():
    """A control group whose number of processes can be limited, of either kind."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    tops = [fields[4] for fields in mounts if "pids" in fields[-1].split(",")]
    tops += [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    for top in tops:
        group = Path(top) / f"nodeserve-test-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / "pids.max").exists():
                yield group
                group.rmdir()
                return
            group.rmdir()
    pytest.skip("no control group that limits processes can be made here")


@pytest.mark.parametrize("left", [0, 1])
def test_a_worker_that_cannot_be_forked_is_tried_again_and_the_reason_shown(
    tiny_model, tmp_path, few_processes, left
):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.1") as node:
        node.wait_ready()
        forkserver = node.process_named("forkserver")
        (few_processes / "cgroup.procs").write_text(str(forkserver.pid))
        (few_processes / "pids.max").write_text(str(1 + left))
        before = node.process_named("decode-0").generation
        streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_for(5)
        assert gone(node.kill("decode-0"))
        node.wait_until(
            lambda status: any(
                p.name == "decode-0" and p.state == "backoff" and "could not" in (p.detail or "")
                for p in status.processes
            )
        )
        assert (few_processes / "cgroup.procs").read_text().split() == [str(forkserver.pid)]
        assert {stream.end()[1] for stream in streams} == {"length"}
        (few_processes / "pids.max").write_text("max")
        comes_back(node, "decode-0", before)
        assert node.process_named("forkserver").pid == forkserver.pid
        assert node.stop() == 0
