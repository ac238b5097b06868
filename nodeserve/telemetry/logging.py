"""Logs: one line per event on stderr, its lower-case name first, then ``key=value`` fields.

A line is written as ``log.info("worker_lost worker=%s late_s=%.1f", name, late_s)``. Whoever
starts the process decides where stderr goes.
"""

import logging
import sys
import time
from typing import Final

from nodeserve.errors import ConfigError

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s"
_DATE_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"


def setup(level: str = "INFO") -> None:
    """Send this process's logs of ``level`` and above to stderr, in UTC; may be called again.

    A traceback follows on lines of its own. Only what is nodeserve's is affected: vLLM keeps
    its own loggers.

    Raises:
        ConfigError: No such level.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    formatter = logging.Formatter(_FORMAT, _DATE_FORMAT)
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger = logging.getLogger("nodeserve")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
