"""Logs: one line per event on stderr, its lower-case name first, then ``key=value`` fields.

A line is written as ``log.info("worker_lost worker=%s late_s=%.1f", name, late_s)``. Whoever
starts the process decides where stderr goes.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError
from nodeserve.telemetry.journal import PRIORITIES, SOCKET, JournalHandler

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s"
_DATE_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


class _JournalFormatter(logging.Formatter):
    """Each line behind its priority, where only stderr leads to the journal; it knows the time."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(priority + line for line in super().format(record).splitlines())


def _goes_to_journal() -> bool:
    """Whether stderr is the stream that the service manager says it connected to the journal."""
    try:
        is_now = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{is_now.st_dev}:{is_now.st_ino}"


def setup(level: str = "INFO", *, journal: Path = SOCKET) -> None:
    """Send this process's logs of ``level`` and above to stderr; may be called again.

    Lines begin with the time in UTC and the level. Where stderr leads to the journal, records go
    to its socket ``journal`` instead, with their fields. A traceback follows on lines of its own.
    Only what is nodeserve's is affected: vLLM keeps its own loggers.

    Raises:
        ConfigError: No such level.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if _goes_to_journal():
        handler.setFormatter(_JournalFormatter())
        handler = JournalHandler(journal, otherwise=handler)
    else:
        formatter = logging.Formatter(_FORMAT, _DATE_FORMAT)
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    logger = logging.getLogger("nodeserve")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
