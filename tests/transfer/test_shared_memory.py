"""KV pools in shared memory, between real processes."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

from nodeserve.errors import PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.shared_memory import MappedMemory, SharedMemory, SharedMemoryImporter

POOL_BYTES = 1 << 20

EXPORTER = """
import json, os, sys
from nodeserve.transfer.shared_memory import SharedMemory
memory = SharedMemory("pool", int(sys.argv[1]))
os.pwrite(memory.fd, bytes(range(256)), 4096)
print(json.dumps(memory.handle()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def exporter():
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORTER, str(POOL_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process, json.loads(process.stdout.readline())
    process.kill()
    process.communicate(timeout=10)


@pytest.fixture
def ours():
    return ctypes.create_string_buffer(1024)


@pytest.fixture
def importer(ours):
    return SharedMemoryImporter(ctypes.addressof(ours), len(ours))


def kill(process) -> None:
    process.kill()
    process.wait(timeout=10)


def test_runs_of_a_peers_pool_arrive_at_their_offsets(exporter, importer, ours) -> None:
    pool = importer.open(exporter[1])
    pool.copy([CopyRun(4096, 10, 3), CopyRun(4096 + 250, 100, 6)])
    pool.close()
    assert ours.raw[10:13] == bytes([0, 1, 2])
    assert ours.raw[100:106] == bytes(range(250, 256))
    assert sum(ours.raw) == 0 + 1 + 2 + sum(range(250, 256))


@pytest.mark.parametrize(
    "run", [CopyRun(POOL_BYTES - 1, 0, 2), CopyRun(0, 1023, 2), CopyRun(-1, 0, 1)]
)
def test_a_run_outside_either_pool_is_refused_and_nothing_is_copied(
    exporter, importer, ours, run
) -> None:
    pool = importer.open(exporter[1])
    with pytest.raises(PeerError, match="not inside"):
        pool.copy([CopyRun(4097, 0, 1), run])
    assert ours.raw == bytes(1024)
    pool.close()


def test_the_pool_of_a_dead_process_is_refused(exporter, importer) -> None:
    process, handle = exporter
    kill(process)
    with pytest.raises(PeerError, match="has probably ended"):
        importer.open(handle)


def test_a_pool_opened_before_its_owner_died_can_be_read_but_is_not_current(
    exporter, importer, ours
) -> None:
    process, handle = exporter
    pool = importer.open(handle)
    assert pool.is_current()
    kill(process)
    assert not pool.is_current()
    pool.copy([CopyRun(4096 + 7, 0, 1)])
    assert ours.raw[0] == 7
    pool.close()


def test_a_reused_file_descriptor_is_refused() -> None:
    old = SharedMemory("old", 4096)
    handle, fd = old.handle(), old.fd
    old.close()
    new = SharedMemory("new", 4096)
    os.dup2(new.fd, fd)
    with pytest.raises(PeerError, match="another file by now"):
        MappedMemory(handle)
    for opened in {fd, new.fd}:
        os.close(opened)


@pytest.mark.parametrize(
    "change", [{"transport": "cuda_ipc"}, {"pid": "1"}, {"fd": -1}, {"bytes": 1.5}, {"inode": None}]
)
def test_a_malformed_handle_is_refused(exporter, change) -> None:
    with pytest.raises(PeerError, match="malformed"):
        MappedMemory(exporter[1] | change)


def test_memory_cannot_shrink_under_its_readers() -> None:
    memory = SharedMemory("pool", 8192)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 4096)
    memory.close()
