"""From an engine's step logs to who has caused what, between two readings of a meter.

Logs are kept until somebody asks for the work up to a time, which is when a meter was read. A run
of steps that lies across that time is divided by time. What a log says of times that have been
asked for before comes too late: its contexts count, its work does not.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from nodeserve.energy.batch import Batch, Caused
from nodeserve.energy.step_cost import rates_of
from nodeserve.wire.accounting import StepLog, WorkShape

MAX_LOGS: Final = 1024
"""Logs that wait for a meter to be read; the oldest go first, and their work is nobody's."""

MERGE_S: Final = 0.000_5
"""Pauses between steps that are not told apart from none: a scheduler's own time."""

Doer = tuple[str, str]
"""A leg, and the role of the worker that it ran on."""


@dataclass(slots=True)
class Work:
    """What an engine did in some time.

    ``busy`` are the intervals in which steps ran, in order. ``covered_s`` is for how long the
    engine has said what it did, and ``missing_s`` for how long it should have and has not.
    """

    caused: dict[Doer, Caused] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)
    covered_s: float = 0.0
    missing_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """How long steps ran."""
        return sum(end - begin for begin, end in self.busy)

    def add(self, later: "Work") -> None:
        """Take in what the same engine did right after."""
        for doer, caused in later.caused.items():
            self.cause(doer, caused)
        for begin, end in later.busy:
            self.add_busy(begin, end)
        self.covered_s += later.covered_s
        self.missing_s += later.missing_s

    def cause(self, doer: Doer, caused: Caused) -> None:
        """Note what a leg has caused."""
        before = self.caused.get(doer)
        self.caused[doer] = caused if before is None else before.plus(caused)

    def add_busy(self, begin: float, end: float) -> None:
        """Note that steps ran; what is noted already was before, or overlaps."""
        if self.busy:
            begin = max(begin, self.busy[-1][1])
        if end <= begin:
            return
        if self.busy and begin - self.busy[-1][1] <= MERGE_S:
            self.busy[-1] = (self.busy[-1][0], end)
        else:
            self.busy.append((begin, end))


@dataclass(slots=True)
class _Reading:
    """How far a log has been read: ``place`` is the next run, ``done`` its part that is over."""

    log: StepLog
    batch: Batch
    at_s: float
    place: int = 0
    done: float = 0.0


class EngineWork:
    """One engine's logs, and what is known of its time.

    Attributes:
        watermark_s: Up to when the engine has said what it did.
        finished_seq: The last log of which nothing is left to be asked for; 0 before the first.
        late_s: How much of its busy time came too late to count.
        dropped_logs: Logs that went because too many waited.
    """

    def __init__(self, shape: WorkShape, *, now_s: float) -> None:
        self.watermark_s = now_s
        self.finished_seq = 0
        self.late_s = 0.0
        self.dropped_logs = 0
        self._rates = rates_of(shape)
        self._logs: deque[StepLog] = deque()
        self._last_seq = 0
        self._reading: _Reading | None = None
        self._begun_s: float | None = None
        self._gone_s: float | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the engine is known to be no more."""
        return self._gone_s is not None

    def take(self, log: StepLog) -> None:
        """Take in a log; one that was taken before is left out.

        Raises:
            ValueError: Its times or contexts are none.
        """
        if log.seq <= self._last_seq:
            return
        if not _is_sound(log):
            raise ValueError(f"step log {log.seq} of generation {log.generation} makes no sense")
        self._last_seq = log.seq
        if len(self._logs) >= MAX_LOGS:
            self.finished_seq = self._logs.popleft().seq
            self._reading = None
            self.dropped_logs += 1
        self._logs.append(log)
        if self._begun_s is None:
            self._begun_s = log.begin_s
            self.watermark_s = log.end_s
        self.watermark_s = max(self.watermark_s, log.end_s)

    def gone(self, now_s: float) -> None:
        """Expect nothing more of an engine that has died."""
        if self._gone_s is None:
            self._gone_s = max(now_s, self.watermark_s)

    def is_read(self, until_s: float) -> bool:
        """Whether nothing is left that will be asked for after ``until_s``."""
        return not self._logs and (self._gone_s is None or self._gone_s <= until_s)

    def until(self, begin_s: float, end_s: float) -> Work:
        """Return what the engine did between two times; the first is not before the last asked."""
        work = Work()
        while self._logs and self._logs[0].begin_s < end_s:
            if not self._read(work, begin_s, end_s):
                break
        expected_from = end_s if self._begun_s is None else max(begin_s, self._begun_s)
        expected_to = end_s if self._gone_s is None else min(end_s, self._gone_s)
        work.missing_s = max(0.0, expected_to - expected_from - work.covered_s)
        return work

    def _read(self, work: Work, begin_s: float, end_s: float) -> bool:
        """Read the first log as far as ``end_s``, and return whether all of it is read."""
        reading = self._reading
        log = self._logs[0]
        if reading is None:
            batch = Batch(self._rates)
            for member in log.batch:
                batch.join(member)
            reading = self._reading = _Reading(log, batch, log.begin_s)
        first_s = max(reading.at_s, begin_s)
        while reading.place < len(log.runs) and self._run(reading, work, begin_s, end_s):
            reading.place += 1
            reading.done = 0.0
        last_s = min(log.end_s, end_s)
        work.covered_s += max(0.0, last_s - first_s)
        reading.at_s = max(reading.at_s, last_s)
        reading.batch.gather()
        role = log.role.value
        for leg_id, caused in reading.batch.caused.items():
            work.cause((leg_id, role), caused)
        reading.batch.caused.clear()
        if log.end_s > end_s:
            return False
        self._logs.popleft()
        self._reading = None
        self.finished_seq = log.seq
        return True

    def _run(self, reading: _Reading, work: Work, begin_s: float, end_s: float) -> bool:
        """Take in what of a run lies between two times, and return whether it is over."""
        run = reading.log.runs[reading.place]
        if run.num_steps < 1:
            return True
        batch = reading.batch
        start_s = run.end_s - run.busy_s
        if reading.done == 0.0:
            if start_s >= end_s and run.end_s > end_s:
                return False
            for leg_id in run.left:
                batch.leave(leg_id)
            for member in run.joined:
                batch.join(member)
        step_s = run.busy_s / run.num_steps
        span_s = run.end_s - start_s
        late = _part(begin_s - start_s, span_s)
        due = _part(end_s - start_s, span_s)
        if late > reading.done:
            # This time was settled before: nobody bears it now.
            batch.run(run.num_steps * (late - reading.done), step_s, run.once, counted=0.0)
            self.late_s += (late - reading.done) * span_s
            reading.done = late
        if due > reading.done:
            batch.run(run.num_steps * (due - reading.done), step_s, run.once)
            work.add_busy(start_s + reading.done * span_s, start_s + due * span_s)
            reading.done = due
        return due >= 1.0


def _is_sound(log: StepLog) -> bool:
    """Whether all that is computed with is a number, and time goes forward."""
    if not -math.inf < log.begin_s <= log.end_s < math.inf:
        return False
    members = list(log.batch)
    for run in log.runs:
        if not (-math.inf < run.end_s < math.inf and 0 <= run.busy_s < math.inf):
            return False
        members += run.joined
        members += run.once
    return all(member.tokens >= 0 and member.context >= 0 for member in members)


def _part(seconds: float, span_s: float) -> float:
    """Return which part of a run lies before a time that is so long after its beginning."""
    if span_s <= 0:
        return 1.0 if seconds >= 0 else 0.0
    return min(max(seconds / span_s, 0.0), 1.0)
