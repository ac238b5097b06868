"""Counters that several processes share: a small file, mapped, of which each writes its part."""

import mmap
import os
import struct
from pathlib import Path
from typing import Final

_PLACE: Final = struct.Struct("=QQ")
"""Of each process: requests that it has in flight, and requests that it has turned away."""


class SharedCounts:
    """The counters of ``num_places`` processes; this one writes those of ``place`` only.

    A machine word is written at once, so nothing is locked. What a process that died had in
    flight counts until somebody forgets it or the next one opens its place.
    """

    def __init__(self, path: Path, place: int, num_places: int) -> None:
        """Make the file if it is not there, and take the place: nothing is in flight there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, num_places * _PLACE.size)
            self._map = mmap.mmap(fd, num_places * _PLACE.size)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self._mine = 2 * place
        self._words[self._mine] = 0

    @property
    def in_flight(self) -> int:
        """Count what all processes have in flight."""
        return sum(self._words[0::2])

    def begin(self) -> None:
        """Count a request in."""
        self._words[self._mine] += 1

    def end(self) -> None:
        """Count a request out."""
        self._words[self._mine] -= 1

    def turn_away(self) -> None:
        """Count a request that was not taken."""
        self._words[self._mine + 1] += 1


def forget_in_flight(path: Path, place: int) -> None:
    """Take what a process that has died had in flight off the counts; without a file, nothing."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if (place + 1) * _PLACE.size <= os.fstat(fd).st_size:
            os.pwrite(fd, bytes(_PLACE.size // 2), place * _PLACE.size)
    finally:
        os.close(fd)


def num_turned_away(path: Path) -> int:
    """Return how many requests the processes of a file have turned away; 0 without a file."""
    try:
        data = path.read_bytes()
    except OSError:
        return 0
    whole = len(data) // _PLACE.size * _PLACE.size
    return sum(turned_away for _, turned_away in _PLACE.iter_unpack(data[:whole]))
