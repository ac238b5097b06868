"""One process's phase, and what to do next."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.lifecycle.restart import RestartHistory


class Phase(enum.StrEnum):
    """Where a process is in its life. FAILED waits for an operator."""

    DOWN = "down"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StartRequested:
    """The process is wanted."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The process does its work."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The process is no longer wanted. With ``grace_s`` of 0 it is killed at once."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone. ``retryable`` is False where a new start would end the same way."""

    retryable: bool = True


@dataclass(frozen=True, slots=True)
class TimeElapsed:
    """The time in ``wake_at_s`` has come."""


Event = StartRequested | BecameReady | StopRequested | Exited | TimeElapsed


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the process to end (SIGTERM)."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process (SIGKILL)."""


Command = Spawn | Terminate | Kill

TRANSITIONS: Final[Mapping[tuple[Phase, type[Event]], Phase]] = {
    (Phase.DOWN, StartRequested): Phase.STARTING,
    (Phase.DOWN, StopRequested): Phase.DOWN,
    (Phase.STARTING, BecameReady): Phase.READY,
    (Phase.STARTING, StopRequested): Phase.STOPPING,
    (Phase.STARTING, Exited): Phase.BACKOFF,
    (Phase.READY, StopRequested): Phase.STOPPING,
    (Phase.READY, Exited): Phase.BACKOFF,
    (Phase.STOPPING, StopRequested): Phase.STOPPING,
    (Phase.STOPPING, BecameReady): Phase.STOPPING,
    (Phase.STOPPING, TimeElapsed): Phase.STOPPING,
    (Phase.STOPPING, Exited): Phase.DOWN,
    (Phase.BACKOFF, TimeElapsed): Phase.STARTING,
    (Phase.BACKOFF, StartRequested): Phase.STARTING,
    (Phase.BACKOFF, StopRequested): Phase.DOWN,
    (Phase.FAILED, StartRequested): Phase.STARTING,
    (Phase.FAILED, StopRequested): Phase.DOWN,
}
"""The phase after each accepted event; BACKOFF becomes FAILED when there is no next try."""

KILL_AGAIN_AFTER_S: Final = 5.0
"""A process may ignore one SIGKILL while the kernel holds it; ask again now and then."""


@dataclass(slots=True)
class ProcessLife:
    """One process's phase, and what to do next.

    ``wake_at_s`` is when the caller must hand in TimeElapsed; None when nothing is due.
    """

    history: RestartHistory = field(default_factory=RestartHistory)
    phase: Phase = Phase.DOWN
    wake_at_s: float | None = None

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what the caller must now do, in order.

        Raises:
            InvalidTransitionError: The phase does not accept the event; nothing changed.
        """
        after = TRANSITIONS.get((self.phase, type(event)))
        if after is None:
            text = f"process is {self.phase} and does not accept {event}"
            raise InvalidTransitionError(text)
        before, self.phase = self.phase, after
        if not isinstance(event, BecameReady):  # a late one must not stop the kill timer
            self.wake_at_s = None
        match event:
            case StartRequested():
                self.history.forgive()
                return [Spawn()]
            case StopRequested(grace_s=grace_s):
                return self._stop(grace_s, now_s) if after is Phase.STOPPING else []
            case Exited(retryable=retryable):
                if before is not Phase.STOPPING:
                    self._plan_restart(now_s, retryable=retryable)
                return []
            case TimeElapsed():
                if after is Phase.STARTING:
                    return [Spawn()]
                self.wake_at_s = now_s + KILL_AGAIN_AFTER_S
                return [Kill()]
            case BecameReady():
                return []

    def hurry(self, by_s: float) -> None:
        """Bring forward to ``by_s`` when a process that was asked to end is killed."""
        if self.phase is Phase.STOPPING and self.wake_at_s is not None:
            self.wake_at_s = min(self.wake_at_s, by_s)

    def check(self) -> None:
        """Raise InvariantError unless a timer runs exactly in the phases that wait for one."""
        timed = self.phase in (Phase.BACKOFF, Phase.STOPPING)
        if timed != (self.wake_at_s is not None):
            text = f"process is {self.phase} with wake_at_s {self.wake_at_s}"
            raise InvariantError(text)

    def _stop(self, grace_s: float, now_s: float) -> list[Command]:
        if grace_s > 0:
            self.wake_at_s = now_s + grace_s
            return [Terminate()]
        self.wake_at_s = now_s + KILL_AGAIN_AFTER_S
        return [Kill()]

    def _plan_restart(self, now_s: float, *, retryable: bool) -> None:
        delay_s = self.history.note_death(now_s)
        if retryable and delay_s is not None:
            self.wake_at_s = now_s + delay_s
        else:
            self.phase = Phase.FAILED
