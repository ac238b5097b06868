"""Which device's driver hung the monitor before this one: a small file that outlives it.

Whoever hangs in a call can say nothing any more, so it is written down before each call which
device is asked. A successor leaves that device alone for a while, and reads the others.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE: Final = "monitor.calls"

HUNG_S: Final = 1.0
"""A monitor that died sooner after a call began has died of something else."""

FIRST_REST_S: Final = 60.0
MAX_REST_S: Final = 3600.0
"""A device that has hung is asked again after this; twice as long each time. Few enough that the
supervisor does not give the monitor up."""

DRIVER: Final = "driver"
"""What is asked before there are devices."""

_HEAD_WORDS: Final = 2
_PLACE_WORDS: Final = 2
_WORD: Final = 8
_NS: Final = 1e9


class CallMarks:
    """Of the driver and each of some devices: how often it has hung, and until when it rests.

    Attributes:
        hung: Those that rest now.
    """

    def __init__(self, runtime_dir: Path, names: Sequence[str], now_s: float) -> None:
        """Read what a predecessor has left; raises OSError."""
        self._places = {name: place for place, name in enumerate((DRIVER, *names))}
        size = (_HEAD_WORDS + _PLACE_WORDS * len(self._places)) * _WORD
        fd = os.open(runtime_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        asked, since_s = self._words[0], self._words[1] / _NS
        self._words[0] = 0
        if 0 < asked <= len(self._places) and now_s - since_s >= HUNG_S:
            self._note_hung(asked - 1, now_s)
        self.hung = {name for name in self._places if now_s < self._rests_until_s(name)}

    @contextmanager
    def asking(self, name: str, now_s: float) -> Iterator[None]:
        """Mark that a device is asked."""
        self._words[1] = round(now_s * _NS)
        self._words[0] = self._places[name] + 1
        try:
            yield
        finally:
            self._words[0] = 0

    def rested(self, now_s: float) -> list[str]:
        """Return the devices that may be asked again."""
        return [name for name in self.hung if now_s >= self._rests_until_s(name)]

    def answered(self, name: str) -> None:
        """Take note that a device that had hung does not hang any more."""
        self.hung.discard(name)
        self._words[self._place(name)] = 0
        self._words[self._place(name) + 1] = 0

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._words.release()
        self._map.close()

    def _note_hung(self, place: int, now_s: float) -> None:
        at = _HEAD_WORDS + _PLACE_WORDS * place
        self._words[at] += 1
        rest_s = min(FIRST_REST_S * 2.0 ** min(self._words[at] - 1, 16), MAX_REST_S)
        self._words[at + 1] = round((now_s + rest_s) * _NS)

    def _rests_until_s(self, name: str) -> float:
        return float(self._words[self._place(name) + 1] / _NS)

    def _place(self, name: str) -> int:
        return _HEAD_WORDS + _PLACE_WORDS * self._places[name]
