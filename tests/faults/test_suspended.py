"""Time that jumps, and a node that does not run for a while: nobody is blamed for it."""

import os
import shutil
import signal
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

SUSPENDED_S = 4.0
"""Longer than any silence that costs a process its life."""

HOUR_S = 3600
DAY_S = 24 * HOUR_S

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile const long *offset_s;

__attribute__((constructor)) static void look(void) {
    int fd = open(getenv("NODESERVE_TEST_OFFSET"), O_RDONLY | O_CLOEXEC);
    if (fd < 0) abort();
    offset_s = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME && offset_s) now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
"""


class WallClock:
    """How far the wall clock of all processes of a node is from the right time."""

    def __init__(self, file):
        self._file = file
        self.set(0)

    def set(self, offset_s):
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("l", offset_s))


@pytest.fixture
def wall_clock(tmp_path, monkeypatch):
    """A library between the node's processes and the C library's clocks, compiled here."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, so the wall clock of processes cannot be moved")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(SHIM)
    argv = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(argv, check=True, timeout=60)
    clock = WallClock(tmp_path / "offset")
    monkeypatch.setenv("NODESERVE_TEST_OFFSET", str(tmp_path / "offset"))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return clock


def generations(status):
    return {process.name: process.generation for process in status.processes}


@pytest.mark.parametrize("gateway", ["rust", "python"])
def test_a_wall_clock_that_jumps_times_nothing_out(tiny_model, tmp_path, wall_clock, gateway):
    words = (*SIMULATED[:2], "--gateway", gateway, "--speedup", "0.1")
    with daemon(tmp_path, str(tiny_model), *words) as node:
        node.wait_ready()
        before = generations(node.status())
        streams = [Stream(node, node.model, prompt, max_tokens=150) for prompt in PROMPTS]
        for jump_s, num_tokens in ((-HOUR_S, 10), (DAY_S, 50), (0, 90)):
            for stream in streams:
                stream.wait_for(num_tokens)
            wall_clock.set(jump_s)
        assert {stream.end()[1] for stream in streams} == {"length"}
        wall_clock.set(DAY_S)
        created_s = node.complete("hello", max_tokens=2)["created"]
        stamp_s = Path("/proc/self").stat().st_mtime  # the right time, from the kernel
        assert created_s - stamp_s > DAY_S / 2  # so the node did see the other time
        assert generations(node.status()) == before


def test_a_node_that_was_suspended_goes_on_as_if_nothing_had_been(node):
    streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    before = node.status()
    pids = [process.pid for process in before.processes]  # the supervisor's comes first
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(SUSPENDED_S)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    assert {stream.end()[1] for stream in streams} == {"length"}
    after = node.wait_until(lambda status: status.state == "ready")
    assert generations(after) == generations(before)
    assert after.requests.resumed_requests == before.requests.resumed_requests
