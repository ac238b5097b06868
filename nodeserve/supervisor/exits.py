"""Why a process ended: what the kernel shows, what it said itself, and the end of its log."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Final

from nodeserve.errors import CapacityError, ConfigError, InvariantError, NodeserveError
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import ProcessExited
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.supervisor.children import Child, Exit
from nodeserve.supervisor.report import explain
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.wire.control import ChildFailed

_log: Final = logging.getLogger(__name__)

LAST_WORDS_S: Final = 0.5
"""How long a cause may take behind the exit that it explains: one message on a Unix socket."""

_NOT_BORN: Final = (
    "could not be started: {}; free what it lacks (files, processes, memory, disk) "
    "or raise the daemon's limits"
)

_ASKED: Final = {signal.SIGKILL: "killed, as asked", signal.SIGTERM: "ended, as asked"}


class Exits:
    """Joins an exit and its cause, whichever comes first, and hands both to ``book``.

    Attributes:
        causes: What processes have said of an end that is still to come, by generation.
    """

    def __init__(
        self, life: NodeLife, runtime: RuntimeDirectory, book: Callable[[ProcessExited], None]
    ) -> None:
        self._life = life
        self._runtime = runtime
        self._book = book
        self.causes: dict[int, ChildFailed] = {}
        self._waiting: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def said(self, failed: ChildFailed) -> None:
        """Take what a process says of its own end."""
        self.causes[failed.generation] = failed
        if (waiting := self._waiting.get(failed.generation)) is not None:
            waiting.set()

    def ended(self, child: Child, ended: Exit) -> None:
        """Take what the kernel says of it."""
        if not ended.code or child.generation in self.causes:
            self._finish(child, ended)
            return
        # It ended by itself: what it said of the cause may still be on its way.
        task = asyncio.create_task(self._hear_last_words(child, ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Wait for no last words any more."""
        for task in self._tasks:
            task.cancel()

    async def _hear_last_words(self, child: Child, ended: Exit) -> None:
        heard = self._waiting[child.generation] = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await heard.wait()
        del self._waiting[child.generation]
        self._finish(child, ended)

    def _finish(self, child: Child, ended: Exit) -> None:
        slot = self._life.of_generation(child.generation)
        failed = self.causes.pop(child.generation, None)
        why = explain(ended, failed, self._runtime.log_tail(child.name, child.log_start))
        if slot is None or slot.life.phase is Phase.STOPPING:
            # As it was told to: the end of its log explains nothing.
            shown = _ASKED.get(ended.signal) if ended.signal else None
            words = "process_exited name=%s pid=%d: %s"
            _log.info(words, child.name, child.pid, shown or ended.describe())
        elif slot.sick is not None:
            _log.warning("process_exited name=%s pid=%d: killed by us", child.name, child.pid)
        else:
            _log.warning("process_exited name=%s pid=%d: %s", child.name, child.pid, why.cause)
        self._book(ProcessExited(child.generation, why.cause, why.retryable, why.exit_code))


def never_born(generation: Generation, error: Exception) -> ProcessExited:
    """Return the exit of an incarnation that could not be started."""
    if isinstance(error, NodeserveError):
        retryable = not isinstance(error, ConfigError)
        return ProcessExited(generation, str(error), retryable, error.exit_code)
    if isinstance(error, OSError):
        cause = _NOT_BORN.format(error.strerror or type(error).__name__)
        return ProcessExited(generation, cause, True, CapacityError.exit_code)
    return ProcessExited(generation, str(error), True, InvariantError.exit_code)
