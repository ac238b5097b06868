"""Logs: one line per event on stderr, its lower-case name first, then ``key=value`` fields.

A line is written as ``log.info("worker_lost worker=%s late_s=%.1f", name, late_s)``. Whoever
starts the process decides where stderr goes.
"""

import logging
import os
import sys
import time
from typing import Final

from nodeserve.errors import ConfigError

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s"
_DATE_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""Of syslog(3), by which the journal sorts. Source: sd-daemon(3)."""


class _JournalFormatter(logging.Formatter):
    """Each line behind its priority; the journal knows the time."""

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(priority + line for line in super().format(record).splitlines())


def _goes_to_journal() -> bool:
    """Whether stderr is the stream that the service manager says it connected to the journal."""
    try:
        is_now = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{is_now.st_dev}:{is_now.st_ino}"


def setup(level: str = "INFO") -> None:
    """Send this process's logs of ``level`` and above to stderr; may be called again.

    Lines begin with the time in UTC and the level, or for the journal with its priority. A
    traceback follows on lines of its own. Only what is nodeserve's is affected: vLLM keeps its
    own loggers.

    Raises:
        ConfigError: No such level.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    formatter = logging.Formatter(_FORMAT, _DATE_FORMAT)
    formatter.converter = time.gmtime
    if _goes_to_journal():
        formatter = _JournalFormatter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger = logging.getLogger("nodeserve")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
