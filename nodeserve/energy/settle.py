"""Divide one window of one meter: what was idle, who used the rest, and what nobody can say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nodeserve.energy.calibration import TYPICAL, Draw
from nodeserve.energy.split import split_energy_mj
from nodeserve.energy.work import Doer, Work
from nodeserve.errors import InvariantError

UNATTRIBUTED: Final = "#unattributed"
"""Energy that was used by somebody who is not known: a step log came too late or never."""

HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one meter counted between two readings.

    ``begin_s`` and ``end_s`` are on the monotonic clock. ``begin_s`` is None in a window that
    began before the ledger did, which has a cause. ``idle_mw`` is None where it is not known.
    """

    meter: str
    epoch: int
    counter_mj: int
    metered_mj: int
    wrapped_mj: int
    begin_s: float | None
    end_s: float
    begin_unix_s: float
    end_unix_s: float
    idle_mw: int | None
    is_estimate: bool
    cause: str | None = None

    @property
    def span_s(self) -> float:
        """How long it was; by the wall clock where the monotonic one has begun anew meanwhile."""
        if self.begin_s is None:
            return max(0.0, self.end_unix_s - self.begin_unix_s)
        return max(0.0, self.end_s - self.begin_s)

    @property
    def hour(self) -> int:
        """Hours since 1970 of its middle: readings are made at full hours, give or take."""
        return int((self.begin_unix_s + self.end_unix_s) / 2 // HOUR_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A window whose energy is divided: the parts add up to what was metered.

    ``is_idle_known`` is False where the device's idle power was not known, so that everything in
    a window with a step counts as used.
    """

    window: Window
    shares: dict[Doer, int] = field(default_factory=dict)
    unattributed_mj: int = 0
    idle_mj: int = 0
    quarantine_mj: int = 0
    is_idle_known: bool = True

    @property
    def used_mj(self) -> int:
        """What is above idle."""
        return self.window.metered_mj - self.idle_mj - self.quarantine_mj

    @property
    def allocated_mj(self) -> int:
        """What is above idle and not in quarantine."""
        return sum(self.shares.values()) + self.unattributed_mj


def settle(
    window: Window, works: Sequence[Work], draw: Draw = TYPICAL, *, by_time: bool = False
) -> Settled:
    """Divide ``window`` among those who ran on its meter.

    Idle is what the device draws anyway, for as long as no step ran; all else is used. Where an
    engine has not said what it did, that time counts as used by nobody known.

    Args:
        window: What was metered.
        works: What each engine on the meter did in the window's time.
        draw: What the device draws for what.
        by_time: Engines share by how long each was busy, and within each by weight: for meters
            that no engine owns, whose engines' weights can't be compared.
    """
    if window.cause is not None:
        return Settled(window=window, quarantine_mj=window.metered_mj)
    span_s = window.span_s
    busy_s = min(_union_s(works), span_s)
    missing_s = min(max((work.missing_s for work in works), default=0.0), span_s - busy_s)
    used_s = busy_s + missing_s
    is_idle_known = window.idle_mw is not None
    if window.idle_mw is not None:
        idle_mj = min(window.metered_mj, round(window.idle_mw * (span_s - used_s)))
    else:
        idle_mj = 0 if used_s > 0 else window.metered_mj
    weights = _weights(works, draw, by_time=by_time)
    if not used_s and not weights:
        idle_mj = window.metered_mj
    used_mj = window.metered_mj - idle_mj
    unattributed_mj = round(used_mj * missing_s / used_s) if used_s else 0
    shares = split_energy_mj(used_mj - unattributed_mj, weights)
    if not shares:
        unattributed_mj = used_mj
    settled = Settled(
        window=window,
        shares={doer: mj for doer, mj in shares.items() if mj},
        unattributed_mj=unattributed_mj,
        idle_mj=idle_mj,
        is_idle_known=is_idle_known,
    )
    if settled.allocated_mj + idle_mj != window.metered_mj:
        text = f"energy: {settled} does not add up to its {window.metered_mj} mJ; report this bug"
        raise InvariantError(text)
    return settled


def _weights(works: Sequence[Work], draw: Draw, *, by_time: bool) -> dict[Doer, float]:
    weights: dict[Doer, float] = {}
    for work in works:
        own = {doer: draw.weigh(caused) for doer, caused in work.caused.items()}
        total = sum(own.values())
        if total <= 0:
            continue
        scale = work.busy_s / total if by_time else 1.0
        for doer, weight in own.items():
            weights[doer] = weights.get(doer, 0.0) + weight * scale
    return weights


def _union_s(works: Sequence[Work]) -> float:
    """Return for how long a step of any engine ran."""
    if len(works) == 1:
        return works[0].busy_s
    union_s = 0.0
    reached = float("-inf")
    for begin, end in sorted(interval for work in works for interval in work.busy):
        union_s += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return union_s
