"""Connections between simulated processes."""

from collections.abc import Callable
from typing import Generic, TypeVar

from nodeserve.sim.event_queue import EventQueue

T = TypeVar("T")


class Link(Generic[T]):
    """One connection: what goes in comes out once, in order and some time later.

    That is what ZeroMQ promises over a Unix socket while both ends live. What is under way when
    the receiver dies is lost.
    """

    def __init__(
        self, queue: EventQueue, delay_s: Callable[[], float], deliver: Callable[[T], None]
    ) -> None:
        self._queue = queue
        self._delay_s = delay_s
        self._deliver: Callable[[T], None] | None = deliver
        self._last_s = 0.0

    def send(self, message: T) -> None:
        """Put a message in."""
        self._last_s = max(self._last_s, self._queue.now_s() + self._delay_s())
        self._queue.at(self._last_s, lambda: self._arrive(message))

    def cut(self) -> None:
        """Let nothing come out any more."""
        self._deliver = None

    def _arrive(self, message: T) -> None:
        if self._deliver is not None:
            self._deliver(message)
