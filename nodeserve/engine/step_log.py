"""What an engine has computed, step by step, as the ledger wants to hear it.

The engine's own thread says when a step begins and ends and who was in it. Another thread takes
what has come together several times a second, so that a step costs the engine a lock and a few
additions, whatever the size of its batch.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.wire.accounting import Member, StepRun, WorkShape

MAX_PAUSE_S: Final = 0.010
"""Steps further apart are told apart, so that work is not spread over time in which none was."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that was computed from ``begin_s`` to ``end_s``; the next one begins where it ends.

    ``batch`` is who was in the batch at the beginning; empty where nothing ran.
    """

    begin_s: float
    end_s: float
    batch: tuple[Member, ...] = ()
    runs: tuple[StepRun, ...] = ()


@dataclass(slots=True)
class _Run:
    end_s: float
    busy_s: float
    joined: Sequence[Member]
    left: Sequence[str]
    once: Sequence[Member]
    num_steps: int = 1


class StepRecorder:
    """One engine's steps since they were last taken.

    Steps may overlap, as with asynchronous scheduling, but end in the order in which they began.
    Then a step's time is what has passed since the one before it ended. All times are seconds of
    the machine's monotonic clock. What is not taken piles up: whoever takes it does so for as
    long as the engine runs.

    Attributes:
        work: What a token costs the engine's model.
    """

    def __init__(self, work: WorkShape, *, now_s: float) -> None:
        self.work = work
        self._lock = threading.Lock()
        self._begin_s = now_s
        self._last_end_s = now_s
        self._under_way: deque[float] = deque()
        self._runs: list[_Run] = []
        # By leg: tokens of each step, context when it joined, and the steps that were over then.
        self._batch: dict[str, tuple[int, int, int]] = {}
        self._num_steps = 0
        self._first_batch: list[tuple[str, tuple[int, int, int]]] = []
        self._first_step = 0

    def began(self, at_s: float) -> None:
        """Take note that a step is under way."""
        with self._lock:
            self._under_way.append(max(at_s, self._begin_s))

    def ended(
        self,
        at_s: float,
        *,
        joined: Sequence[Member] = (),
        left: Sequence[str] = (),
        once: Sequence[Member] = (),
    ) -> None:
        """Take note that the oldest step under way is over, or one that nobody saw begin.

        ``left`` have left the batch since the step before and ``joined`` have entered it, in this
        order; ``once`` were computed beside the batch, in this step alone. A member that is in
        the batch again and again is not mentioned.
        """
        with self._lock:
            began_s = self._under_way.popleft() if self._under_way else self._last_end_s
            at_s = max(at_s, self._last_end_s, began_s)
            pause_s = began_s - self._last_end_s
            busy_s = at_s - max(began_s, self._last_end_s)
            self._last_end_s = at_s
            runs = self._runs
            if not (joined or left or once) and runs and pause_s < MAX_PAUSE_S:
                last = runs[-1]
                if not last.once:
                    last.num_steps += 1
                    last.busy_s += busy_s
                    last.end_s = at_s
                    self._num_steps += 1
                    return
            for leg_id in left:
                self._batch.pop(leg_id, None)
            for member in joined:
                self._batch[member.leg_id] = (member.tokens, member.context, self._num_steps)
            runs.append(_Run(at_s, busy_s, joined, left, once))
            self._num_steps += 1

    def take(self, now_s: float) -> Recorded | None:
        """Return what was computed since the last call; None while it is not known yet.

        A step that is under way is not known before it ends: then what is returned ends with the
        last one that did, or where it began.
        """
        with self._lock:
            end_s = max(self._last_end_s, self._begin_s)
            end_s = max(end_s, self._under_way[0] if self._under_way else now_s)
            begin_s = self._begin_s
            if end_s <= begin_s and not self._runs:
                return None
            self._begin_s = end_s
            runs, self._runs = self._runs, []
            before, self._first_batch = self._first_batch, list(self._batch.items())
            steps_before, self._first_step = self._first_step, self._num_steps
        if not runs:
            return Recorded(begin_s, end_s)
        batch = tuple(
            Member(leg_id, tokens, context + tokens * (steps_before - joined_at))
            for leg_id, (tokens, context, joined_at) in before
        )
        return Recorded(begin_s, end_s, batch, tuple(map(_told, runs)))


def _told(run: _Run) -> StepRun:
    return StepRun(
        end_s=run.end_s,
        num_steps=run.num_steps,
        busy_s=run.busy_s,
        joined=tuple(run.joined),
        left=tuple(run.left),
        once=tuple(run.once),
    )
