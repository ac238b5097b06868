"""Read a counter that can be reset, wrap, leap, or go unread for a while.

A counter counts up within an *epoch*. Between two readings it has counted some millijoules, which
are booked as metered whatever they are; where they cannot be trusted, or nobody was there to say
who used them, they have a *cause* and go to quarantine instead of to requests.
"""

from dataclasses import dataclass
from typing import Final

from nodeserve.wire.accounting import Meter

RESET: Final = "#reset"
"""The counter fell: the driver was reloaded, or the device reset. A new epoch begins."""

IMPLAUSIBLE: Final = "#implausible"
"""The counter leapt further than the device can draw."""

DOWN: Final = "#down"
"""The ledger was not there: what ran meanwhile is not known."""

PLAUSIBLE: Final = 1.1
"""By how much a device may pass its power limit before its counter is not believed."""

COUNTER_PERIOD_S: Final = 0.2
"""A counter moves about every 100 ms: a reading may be that much older than its time, and the one
before it just as much newer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastReading:
    """What a meter said last. ``at_s`` is None where that was before the ledger's own start."""

    counter_mj: int
    epoch: int
    at_s: float | None
    at_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a meter has counted since its last reading, and why it is not to be billed, if so.

    ``wrapped_mj`` is what the counter lost by wrapping; ``epoch`` is the one that this is in.
    """

    metered_mj: int
    epoch: int
    cause: str | None = None
    wrapped_mj: int = 0


def count(meter: Meter, last: LastReading, counter_mj: int, at_s: float) -> Counted:
    """Return what ``meter`` has counted from ``last`` until it showed ``counter_mj``.

    A counter that fell has wrapped if its device could have drawn what that would mean; else it
    began a new epoch, from 0. What the new epoch shows is metered if the device can have drawn
    it since the last reading; else the epoch began before, and nothing is known to have been.
    """
    bound_mj = None if last.at_s is None else plausible_mj(meter, at_s - last.at_s)
    counted_mj = counter_mj - last.counter_mj
    wrapped_mj = 0
    if counted_mj < 0 and _has_wrapped(meter, counted_mj, bound_mj):
        wrapped_mj = meter.wraps_at_mj or 0
        counted_mj += wrapped_mj
    if counted_mj < 0:
        believed = bound_mj is None or counter_mj <= bound_mj
        metered_mj = counter_mj if believed else 0
        return Counted(metered_mj=metered_mj, epoch=last.epoch + 1, cause=RESET)
    cause = None
    if last.at_s is None:
        cause = DOWN
    elif bound_mj is not None and counted_mj > bound_mj:
        cause = IMPLAUSIBLE
    return Counted(metered_mj=counted_mj, epoch=last.epoch, cause=cause, wrapped_mj=wrapped_mj)


def plausible_mj(meter: Meter, seconds: float) -> int | None:
    """Return the most that ``meter`` can count in ``seconds``; None where nothing bounds it."""
    if meter.max_power_mw is None:
        return None
    return int(PLAUSIBLE * meter.max_power_mw * (max(seconds, 0.0) + COUNTER_PERIOD_S))


def _has_wrapped(meter: Meter, counted_mj: int, bound_mj: int | None) -> bool:
    """Whether a counter that fell did so by wrapping; without a bound, a small step does."""
    if meter.wraps_at_mj is None:
        return False
    counted_mj += meter.wraps_at_mj
    limit_mj = meter.wraps_at_mj // 2 if bound_mj is None else bound_mj
    return 0 <= counted_mj <= limit_mj
