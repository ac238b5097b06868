"""A thread beside the engine loop that tells the supervisor how far the engine got."""

import logging
import threading
from collections.abc import Callable
from typing import Final, Self

from nodeserve.engine.base import Engine
from nodeserve.errors import PeerError
from nodeserve.worker.control import Reporter

_LOG: Final = logging.getLogger(__name__)

INTERVAL_S: Final = 0.25
IDLE_INTERVALS: Final = 4
"""An engine without work, that nobody waits for, is reported so much less often."""

_STOP_S: Final = 5.0


class Heartbeat:
    """Reports the engine's counters every ``interval_s`` while it works, the first time at once.

    It reads two numbers and never calls into the engine, so a stuck engine is seen as one:
    the heartbeats go on while the steps stand still. ``beside`` is called with each of them.
    """

    def __init__(
        self,
        reporter: Reporter,
        engine: Engine,
        *,
        interval_s: float = INTERVAL_S,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        self._reporter = reporter
        self._engine = engine
        self._beside = beside
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin to report."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Report no more."""
        self._is_over.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while True:
            working = self._engine.num_requests > 0
            next_s = self._interval_s if working else self._interval_s * IDLE_INTERVALS
            try:
                self._reporter.heartbeat(self._engine, next_s=next_s)
                self._reporter.answer()
            except PeerError as error:
                _LOG.warning("heartbeat_unsent cause=%r", str(error))
            self._beside()
            if self._is_over.wait(next_s):
                return
