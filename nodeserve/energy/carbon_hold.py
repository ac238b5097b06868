"""When a request that can wait should start, so that its electricity is cleaner.

Only for deciding: marginal intensities are as good here as averages, as long as they are not
mixed. What is saved is a forecast, and never booked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from nodeserve.energy.intensity import Interval
from nodeserve.errors import InvariantError

WORTH_WAITING: Final = Fraction(19, 20)
"""What a later hour may have of the present intensity: forecasts are no better than 5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldDecision:
    """When to start. ``start_unix_s`` is now, or the begin of a cleaner interval.

    ``now_g_per_kwh`` is None where nothing is known of the present, ``then_g_per_kwh`` of the
    start.
    """

    start_unix_s: float
    now_g_per_kwh: Fraction | None
    then_g_per_kwh: Fraction | None


def decide_hold(
    forecast: Sequence[Interval], *, now_unix_s: float, deadline_unix_s: float
) -> HoldDecision:
    """Return when to start: at once, or at the begin of the cleanest interval up to the deadline.

    What is not known is no reason to wait: without an intensity for now, or with none that is at
    least 5 % lower, the start is now. Of equally clean intervals the first one is taken.

    Args:
        forecast: Intervals of one zone and one kind, in any order.
        now_unix_s: The present.
        deadline_unix_s: The latest start that is allowed; a past one means now.

    Raises:
        InvariantError: The forecast is of several zones or kinds.
    """
    if len({(interval.zone, interval.kind) for interval in forecast}) > 1:
        raise InvariantError("a forecast to hold requests by is of several zones or kinds")
    present = [one for one in forecast if one.begin_unix_s <= now_unix_s < one.end_unix_s]
    if not present:
        return HoldDecision(start_unix_s=now_unix_s, now_g_per_kwh=None, then_g_per_kwh=None)
    # A month's mean and an hour's may both hold now: the shorter one knows better.
    now_g = min(present, key=_length_s).g_per_kwh
    grain = min(present, key=_length_s).grain
    later = [
        one
        for one in forecast
        if now_unix_s < one.begin_unix_s <= deadline_unix_s and one.grain is grain
    ]
    best = min(later, key=lambda one: (one.g_per_kwh, one.begin_unix_s), default=None)
    if best is None or best.g_per_kwh > now_g * WORTH_WAITING:
        return HoldDecision(start_unix_s=now_unix_s, now_g_per_kwh=now_g, then_g_per_kwh=now_g)
    return HoldDecision(
        start_unix_s=best.begin_unix_s, now_g_per_kwh=now_g, then_g_per_kwh=best.g_per_kwh
    )


def _length_s(interval: Interval) -> int:
    return interval.end_unix_s - interval.begin_unix_s
