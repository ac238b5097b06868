"""Builds the fake CUDA driver of tests/support/fake_cuda; see its sources for what it imitates.

Environment variables that it reads: FAKE_CUDA_DEVICES (2), CUDA_VISIBLE_DEVICES, FAKE_CUDA_NO_P2P
(``0-1`` or ``all``), FAKE_CUDA_NO_VMM, FAKE_CUDA_MIG, FAKE_CUDA_FAIL (``cuMemCreate=2``), and
FAKE_CUDA_EXPORTER_DEATH: ``readable`` leaves opened memory of an ended process readable, else an
access breaks the contexts of whoever makes it.
"""

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "fake_cuda"


@functools.cache
def _built(*options: str) -> Path:
    folder = tempfile.mkdtemp(prefix="nodeserve-fake-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "libcuda.so.1"
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip("no C compiler to build the fake CUDA driver with")
    command = [compiler, "-D_GNU_SOURCE", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1"]
    command += ["-shared", "-fPIC", "-pthread", "-o", str(library), *options]
    subprocess.run([*command, *map(str, sorted(SOURCES.glob("*.c")))], check=True)
    return library


def build(directory: Path, *options: str) -> Path:
    """Return a library of its own in ``directory``, with nothing in it broken or held yet."""
    directory.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_built(*options), directory / "libcuda.so.1"))


class FakeControls:
    """Makes the fake that this process has loaded fail or stand still."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def fail(self, function: str, code: int, times: int = 1) -> None:
        self._library.fake_fail(function.encode(), code, times)

    def hold(self) -> None:
        """Let every stream stand still in front of its next copy."""
        self._library.fake_hold(1)

    def let_go(self) -> None:
        self._library.fake_hold(0)

    def hold_stream(self, stream: int) -> None:
        """Let one stream stand still in front of its next copy, while all others run."""
        self._library.fake_hold_stream(ctypes.c_void_p(stream), 1)

    def let_stream_go(self, stream: int) -> None:
        self._library.fake_hold_stream(ctypes.c_void_p(stream), 0)

    @property
    def num_events(self) -> int:
        """How many events were created and not destroyed."""
        return self._library.fake_num_events()

    @property
    def num_ranges(self) -> int:
        """How many ranges of addresses are reserved, allocated, mapped or registered."""
        return self._library.fake_num_ranges()

    @property
    def registered_bytes(self) -> int:
        self._library.fake_registered_bytes.restype = ctypes.c_size_t
        return self._library.fake_registered_bytes()


def fake_uuid(device: int) -> str:
    return f"GPU-face0000-0000-0000-0000-0000000000{device:02x}"
