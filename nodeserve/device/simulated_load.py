"""How busy simulated devices are: each has a small file that its engine and its meter share.

A file is mapped, and a machine word of it is written at once, so nothing is locked. It outlives
engine and monitor, as a card outlives who uses it.
"""

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_WORDS: Final = 3
_BYTES: Final = 8 * _WORDS
_BUSY_NS, _BASE_MJ, _NUM_RESETS = range(_WORDS)
_NS: Final = 1_000_000_000


class SimulatedLoad:
    """One simulated device's file. The engine writes ``busy_ns``, the meter the rest.

    Attributes:
        words: Busy nanoseconds; what the counter read at its last reset, in mJ; how many resets.
    """

    def __init__(self, runtime_dir: Path, meter: str) -> None:
        """Map the file, which is made where it is not there; raises OSError."""
        path = load_path(runtime_dir, meter)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _BYTES)
            self._map = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")

    @property
    def busy_ns(self) -> int:
        """For how long it has computed so far."""
        return self._words[_BUSY_NS]

    def add_busy(self, busy_s: float) -> None:
        """Count in that it has computed for so long."""
        self._words[_BUSY_NS] += round(busy_s * _NS)

    @property
    def base_mj(self) -> int:
        """What the counter of energy would read had it never been reset, at its last reset."""
        return self._words[_BASE_MJ]

    @property
    def num_resets(self) -> int:
        """How often it was reset."""
        return self._words[_NUM_RESETS]

    def reset(self, base_mj: int) -> None:
        """Let the counter of energy begin anew at ``base_mj``."""
        self._words[_BASE_MJ] = base_mj
        self._words[_NUM_RESETS] += 1

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._words.release()
        self._map.close()


class EngineLoad:
    """The load of all devices of one engine."""

    def __init__(self, runtime_dir: Path, meters: Sequence[str]) -> None:
        """Map a file for each; one that cannot be had is left out, for the load is not vital."""
        self._loads: list[SimulatedLoad] = []
        for meter in meters:
            with contextlib.suppress(OSError):
                self._loads.append(SimulatedLoad(runtime_dir, meter))

    def add_busy(self, busy_s: float) -> None:
        """Count in a step that took so long."""
        for load in self._loads:
            load.add_busy(busy_s)


def load_path(runtime_dir: Path, meter: str) -> Path:
    """Return where a device's file is."""
    return runtime_dir / f"{meter}.load"
