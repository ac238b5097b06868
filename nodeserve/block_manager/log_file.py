"""The file of look-ups, stores and evictions; it never makes serving wait, and it is bounded."""

import logging
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Final

from nodeserve.clock import Clock
from nodeserve.kv.tier_log import LogHeader, Op, header, line

MAX_WAITING_BYTES: Final = 8 << 20
MAX_FILE_BYTES: Final = 1 << 30
"""Then the file becomes ``.1``, in place of the one before, and a new one begins."""

_LOG: Final = logging.getLogger(__name__)


class LogFile:
    """Lines wait in memory for ``flush``, which writes them on a thread of ``writer``.

    Attributes:
        num_written: Lines handed to the file system.
        num_dropped: Lines for which there was no room, or no disk.
    """

    def __init__(self, path: Path, clock: Clock, writer: Executor) -> None:
        self._path = path
        self._clock = clock
        self._writer = writer
        self._begun_s = clock.now_s()
        self._lines: list[str] = []
        self._waiting_bytes = 0
        self._header = ""
        self._writing: Future[None] | None = None
        self._num_writing = 0
        self.num_written = 0
        self.num_dropped = 0

    def begin(self, tier: LogHeader) -> None:
        """Begin to log a tier; call it before the first ``add``."""
        self._begun_s = self._clock.now_s()
        self._header = header(tier)
        self._append(self._header)

    def add(self, op: Op, listener: str, keys: bytes, parent: bytes = b"") -> None:
        """Log one event, if there is room for it."""
        at_s = self._clock.now_s() - self._begun_s
        self._append(line(op, listener, keys, parent, at_s=at_s))

    def flush(self) -> None:
        """Have what waits written, unless the last flush is still under way."""
        if self._writing is not None:
            if not self._writing.done():
                return
            self._ended(self._writing)
        if self._lines:
            text = "".join(self._lines)
            self._num_writing = len(self._lines)
            self._lines, self._waiting_bytes = [], 0
            self._writing = self._writer.submit(self._write, text, self._header)

    def close(self, within_s: float) -> None:
        """Write what waits, if the disk does so ``within_s`` seconds."""
        self.flush()
        if self._writing is not None:
            try:
                self._writing.exception(within_s)
            except TimeoutError:
                return
            self._ended(self._writing)

    def _append(self, text: str) -> None:
        if self._waiting_bytes + len(text) > MAX_WAITING_BYTES:
            self.num_dropped += 1
            return
        self._lines.append(text)
        self._waiting_bytes += len(text)

    def _ended(self, writing: "Future[None]") -> None:
        self._writing = None
        error = writing.exception()
        if error is None:
            self.num_written += self._num_writing
            return
        if not self.num_dropped:
            _LOG.warning("kv_log_failed path=%s cause=%s", self._path, error)
        self.num_dropped += self._num_writing

    def _write(self, text: str, first: str) -> None:
        """Append on the writer's thread."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size > MAX_FILE_BYTES:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            text = text if text.startswith(first) else first + text
        with self._path.open("a") as file:
            file.write(text)
