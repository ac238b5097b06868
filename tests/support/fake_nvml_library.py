"""Builds the fake NVML of tests/support/fake_nvml, and says what it imitates; see fake_nvml.h.

Nobody finds the library by its name: only who is told its path has it, and nothing else in that
process, such as vLLM's look for a platform. A program that is to find it, unchanged, needs
``LD_LIBRARY_PATH`` to name its directory.
"""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "fake_nvml"
NAME = "libnvidia-ml.so.1"


@functools.cache
def _built() -> Path:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip("no C compiler to build the fake NVML with")
    folder = tempfile.mkdtemp(prefix="nodeserve-fake-nvml-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / NAME
    command = [compiler, "-D_GNU_SOURCE", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2"]
    command += ["-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-o", str(library)]
    command += [*map(str, sorted(SOURCES.glob("*.c"))), "-lm", "-ldl"]
    subprocess.run(command, check=True)
    return library


class FakeNvml:
    """A library of its own in ``directory``, with eight H100s that are idle and well.

    Attributes:
        library: Its path.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.library = Path(shutil.copy(_built(), directory / NAME))
        self._control = directory / "control"
        self.begin_anew()

    @property
    def environment(self) -> dict[str, str]:
        """What lets a program find this library by its name."""
        return {"LD_LIBRARY_PATH": str(self.library.parent)}

    def begin_anew(self, now_s: float | None = None) -> None:
        """Forget everything; with ``now_s`` time stands still there, and moves by ``at``."""
        self._keys: dict[int | str, dict[str, float]] = {}
        self._events: list[str] = []
        self._boot, self._num_gpus, self._now_s = time.monotonic_ns(), 8, now_s
        self._say()

    def at(self, now_s: float) -> None:
        self._now_s = now_s
        self._say()

    def set(self, gpu: int | str = "*", **keys: float) -> None:
        """Let a GPU, or all, be so from now on; the keys are those of fake_nvml.h."""
        self._keys.setdefault(gpu, {}).update(keys)
        self._say()

    def xid(self, gpu: int, number: int) -> None:
        self.event(gpu, 8, number)

    def event(self, gpu: int, kind: int, data: int) -> None:
        self._events.append(f"event {gpu} {kind} {data}")
        self._say()

    def take_away(self, num_left: int) -> None:
        """Let the driver know only the first ``num_left`` GPUs."""
        self._num_gpus = num_left
        self._say()

    @staticmethod
    def uuid(gpu: int) -> str:
        return f"GPU-fa4e0000-0000-0000-0000-{gpu:012d}"

    def _say(self) -> None:
        lines = [f"boot {self._boot}", f"gpus {self._num_gpus}", *self._events]
        if self._now_s is not None:
            lines.append(f"now {self._now_s!r}")
        for gpu in sorted(self._keys, key=str):  # "*" sorts before digits
            pairs = (f"{key}={value!r}" for key, value in self._keys[gpu].items())
            lines.append(" ".join([str(gpu), *pairs]))
        new = self._control.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self._control)
