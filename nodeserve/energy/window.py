"""Which windows there are, when each can be settled, and by whose work.

A window lies between two readings of a meter. It is settled, with all other meters' up to the
same time, when every engine has said what it did until then, or after a grace: then what is not
known is booked to nobody, and what is said of it later does not count.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeserve.energy.calibration import Calibration
from nodeserve.energy.meter import LastReading, count
from nodeserve.energy.settle import Settled, Window, settle
from nodeserve.energy.work import EngineWork, Work
from nodeserve.wire.accounting import (
    EngineHello,
    Meter,
    MetersHello,
    MetersRead,
    Reading,
    StepLog,
)

GRACE_S: Final = 3.0
"""How long a window waits for engines; a step that takes longer is booked to nobody."""

FORGET_S: Final = 10.0
"""An engine that has said nothing for so long is waited for no more; its time counts as idle."""

MAX_EDGES: Final = 600
"""Times of readings that wait to be settled; then neighbouring windows become one."""

MAX_CARRIED: Final = 50_000
"""Legs whose work is kept for a meter that cannot be read; then it is nobody's."""

UNOWNED_KINDS: Final = frozenset({"cpu"})
"""Kinds of meters that no engine owns: engines without meters of their own share them."""

ESTIMATES: Final = frozenset({"nvml-power"})
"""Sources whose figures are integrated, not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A meter's first reading: what it counts from."""

    meter: Meter
    reading: LastReading


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is to be booked at once: either all of it is on disk, or nothing.

    ``read_logs`` says up to which of its step logs each generation is done with.
    """

    opened: tuple[Opened, ...]
    settled: tuple[Settled, ...]
    meters: Mapping[str, Meter]
    until_unix_s: float
    read_logs: Mapping[int, int]


@dataclass(slots=True)
class _Edge:
    """A time at which meters were read, and the windows that ended then."""

    at_s: float
    at_unix_s: float
    windows: dict[str, Window] = field(default_factory=dict)
    opened: list[Opened] = field(default_factory=list)


@dataclass(slots=True)
class _Engine:
    hello: EngineHello
    work: EngineWork


class Accountant:
    """All meters and engines of a node. It is told what is heard, and asked what is to book."""

    def __init__(self, known: Mapping[str, LastReading]) -> None:
        """Go on from what meters said last, of which a predecessor has booked everything."""
        self.meters: dict[str, Meter] = {}
        self.late_s = 0.0
        self._last = dict(known)
        self._edges: deque[_Edge] = deque()
        self._engines: dict[int, _Engine] = {}
        self._carried: dict[str, dict[int, Work]] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._settled_s: float | None = None
        self._monitor = 0

    @property
    def num_waiting(self) -> int:
        """How many readings wait to be settled."""
        return len(self._edges)

    def knows(self, generation: int) -> bool:
        """Whether an engine of that generation has said hello."""
        return generation in self._engines

    # ---------------------------------------------------------------------- what is heard

    def meters_hello(self, hello: MetersHello) -> None:
        """Take note of which meters there are; an earlier monitor is not heard any more."""
        if hello.generation >= self._monitor:
            self._monitor = hello.generation
            self.meters |= {meter.meter: meter for meter in hello.meters}

    def meters_read(self, read: MetersRead) -> bool:
        """Take in a reading, and return whether all of its meters are known."""
        last_s = self._edges[-1].at_s if self._edges else self._settled_s
        if read.generation != self._monitor or (last_s is not None and read.at_s <= last_s):
            return read.generation <= self._monitor
        edge = _Edge(read.at_s, read.at_unix_s)
        are_known = True
        for reading in read.readings:
            meter = self.meters.get(reading.meter)
            are_known = are_known and meter is not None
            if meter is not None and reading.counter_mj is not None:
                self._count(edge, meter, reading, reading.counter_mj)
        self._edges.append(edge)
        if len(self._edges) > MAX_EDGES:
            self._join_edges()
        return are_known

    def engine_hello(self, hello: EngineHello, *, now_s: float) -> None:
        """Expect logs of an engine; what its worker ran before is gone."""
        for generation, engine in self._engines.items():
            if engine.hello.worker == hello.worker and generation < hello.generation:
                engine.work.gone(now_s)
        if hello.generation not in self._engines:
            self._engines[hello.generation] = _Engine(hello, EngineWork(hello.work, now_s=now_s))

    def step_log(self, log: StepLog) -> bool:
        """Take in a log, and return whether its engine is known."""
        engine = self._engines.get(log.generation)
        if engine is not None:
            engine.work.take(log)
        return engine is not None

    def engine_gone(self, generation: int, *, now_s: float) -> None:
        """Wait no more for an engine whose processes have died."""
        engine = self._engines.get(generation)
        if engine is not None:
            engine.work.gone(now_s)

    # --------------------------------------------------------------------- what is to book

    def settle(self, *, now_s: float) -> Round | None:
        """Return what can be booked now; None for nothing. It is not returned again."""
        opened: list[Opened] = []
        settled: list[Settled] = []
        until_unix_s = None
        while self._edges and self._is_ready(self._edges[0], now_s):
            edge = self._edges.popleft()
            opened += edge.opened
            settled += self._settle(edge)
            until_unix_s = edge.at_unix_s
        if until_unix_s is None:
            return None
        read_logs = {
            generation: engine.work.finished_seq for generation, engine in self._engines.items()
        }
        self._forget()
        return Round(
            opened=tuple(opened),
            settled=tuple(settled),
            meters=dict(self.meters),
            until_unix_s=until_unix_s,
            read_logs=read_logs,
        )

    def _count(self, edge: _Edge, meter: Meter, reading: Reading, counter_mj: int) -> None:
        last = self._last.get(meter.meter)
        if last is None:
            now = LastReading(
                counter_mj=counter_mj, epoch=1, at_s=edge.at_s, at_unix_s=edge.at_unix_s
            )
            edge.opened.append(Opened(meter=meter, reading=now))
            self._last[meter.meter] = now
            return
        counted = count(meter, last, counter_mj, edge.at_s)
        edge.windows[meter.meter] = Window(
            meter=meter.meter,
            epoch=counted.epoch,
            counter_mj=counter_mj,
            metered_mj=counted.metered_mj,
            wrapped_mj=counted.wrapped_mj,
            begin_s=last.at_s,
            end_s=edge.at_s,
            begin_unix_s=last.at_unix_s,
            end_unix_s=edge.at_unix_s,
            idle_mw=reading.idle_mw,
            is_estimate=meter.source in ESTIMATES,
            cause=counted.cause,
        )
        self._last[meter.meter] = LastReading(
            counter_mj=counter_mj,
            epoch=counted.epoch,
            at_s=edge.at_s,
            at_unix_s=edge.at_unix_s,
        )

    def _is_ready(self, edge: _Edge, now_s: float) -> bool:
        if now_s >= edge.at_s + GRACE_S:
            return True
        works = (engine.work for engine in self._engines.values())
        return all(work.is_gone or work.watermark_s >= edge.at_s for work in works)

    def _settle(self, edge: _Edge) -> list[Settled]:
        begin_s = edge.at_s if self._settled_s is None else self._settled_s
        slices = {
            generation: engine.work.until(begin_s, edge.at_s)
            for generation, engine in self._engines.items()
        }
        self._settled_s = edge.at_s
        settled = []
        for name in dict.fromkeys([*edge.windows, *self._last]):
            window = edge.windows.get(name)
            carried = self._carried.pop(name, None)
            meter = self.meters.get(name)
            if window is None and meter is None:
                continue  # of another time
            works = {generation: slices[generation] for generation in self._engines_of(meter, name)}
            if carried is not None:
                works = _joined(carried, works)
            if window is None:
                self._carry(name, works)
            else:
                by_time = meter is not None and meter.kind in UNOWNED_KINDS
                settled.append(self._settle_one(window, list(works.values()), by_time=by_time))
        return settled

    def _settle_one(self, window: Window, works: list[Work], *, by_time: bool) -> Settled:
        """Settle a window by what its meter was seen to draw so far, and see what it drew."""
        calibration = self._calibrations.setdefault(window.meter, Calibration())
        settled = settle(window, works, calibration.draw, by_time=by_time)
        has_seen_all = not any(work.missing_s > 0 for work in works)
        if window.cause is None and settled.is_idle_known and has_seen_all and not by_time:
            caused = (caused for work in works for caused in work.caused.values())
            calibration.learn(caused, settled.used_mj)
        return settled

    def _engines_of(self, meter: Meter | None, name: str) -> Iterable[int]:
        if meter is not None and meter.kind in UNOWNED_KINDS:
            return [gen for gen, engine in self._engines.items() if not engine.hello.meters]
        return [gen for gen, engine in self._engines.items() if name in engine.hello.meters]

    def _carry(self, name: str, works: dict[int, Work]) -> None:
        """Keep the work of a time in which a meter was not read."""
        if sum(len(work.caused) for work in works.values()) > MAX_CARRIED:
            works = {
                generation: Work(missing_s=work.missing_s + work.busy_s)
                for generation, work in works.items()
            }
        self._carried[name] = works

    def _forget(self) -> None:
        """Drop engines that have died, and those that have long said nothing."""
        settled_s = self._settled_s or 0.0
        for generation, engine in list(self._engines.items()):
            work = engine.work
            is_over = work.is_gone or work.watermark_s < settled_s - FORGET_S
            if is_over and work.is_read(settled_s):
                self.late_s += work.late_s
                del self._engines[generation]

    def _join_edges(self) -> None:
        """Make one of the first two neighbouring times whose windows can be one."""
        for place in range(len(self._edges) - 1):
            before, after = self._edges[place], self._edges[place + 1]
            windows = {
                name: _one_window(window, after.windows.get(name))
                for name, window in before.windows.items()
            }
            if before.opened or any(window is None for window in windows.values()):
                continue
            after.windows |= {name: window for name, window in windows.items() if window}
            del self._edges[place]
            return


def _one_window(first: Window, second: Window | None) -> Window | None:
    """Return two neighbouring windows as one; None where they differ in more than time."""
    if (
        second is None
        or (first.cause, first.epoch, first.hour) != (second.cause, second.epoch, second.hour)
        or first.is_estimate != second.is_estimate
    ):
        return None
    return dataclasses.replace(
        second,
        metered_mj=first.metered_mj + second.metered_mj,
        wrapped_mj=first.wrapped_mj + second.wrapped_mj,
        begin_s=first.begin_s,
        begin_unix_s=first.begin_unix_s,
    )


def _joined(carried: dict[int, Work], works: dict[int, Work]) -> dict[int, Work]:
    """Return earlier and later work as one, by engine; both are left as they are."""
    joined: dict[int, Work] = {}
    for part in (carried, works):
        for generation, work in part.items():
            joined.setdefault(generation, Work()).add(work)
    return joined
