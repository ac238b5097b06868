"""How much CO2e a kilowatt-hour stands for: by zone and hour, with where that is known from.

The books take location-based averages alone. Marginal intensities say what an hour more would
cause, which is good for deciding *when* to run, and would count twice in a sum of averages.
"""

import bisect
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from nodeserve.energy.utc import DAY_S, HOUR_S, date_of
from nodeserve.errors import ConfigError

WORLD: Final = "WORLD"
"""The zone of what is used where a zone is not known."""

_MONTH_S: Final = 31 * DAY_S


class Kind(enum.StrEnum):
    """What an intensity is of: all of a zone's production, or what another kWh would add."""

    AVERAGE = "average"
    MARGINAL = "marginal"


class Scope(enum.StrEnum):
    """What is counted: burning alone, or also building plants and mining what they burn."""

    DIRECT = "direct"
    LIFECYCLE = "lifecycle"


class Tier(enum.StrEnum):
    """How closely an intensity fits the hour that it is used for.

    ``CONSTANT`` is one number that the operator's command gave for all hours.
    """

    HOUR = "hour"
    MONTH = "month"
    YEAR = "year"
    WORLD = "world"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an intensity is from. ``vintage`` is the year or release of the source."""

    source: str
    vintage: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Yearly:
    """A zone's mean over a calendar year; ``alias`` is another name of the zone, or empty."""

    zone: str
    alias: str
    year: int
    g_per_kwh: Fraction
    kind: Kind
    scope: Scope
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A zone's mean from ``begin_unix_s`` until before ``end_unix_s``."""

    zone: str
    begin_unix_s: int
    end_unix_s: int
    g_per_kwh: Fraction
    kind: Kind
    scope: Scope
    is_estimate: bool
    origin: Origin

    @property
    def grain(self) -> Tier:
        """What it can stand for: up to an hour, up to a month, or longer."""
        length_s = self.end_unix_s - self.begin_unix_s
        if length_s <= HOUR_S:
            return Tier.HOUR
        return Tier.MONTH if length_s <= _MONTH_S else Tier.YEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The intensity used for an hour.

    ``zone`` is the one that it is of, which need not be the one that was asked for.
    ``is_estimate``: the source says that it estimates, or it is of another year or place.
    """

    zone: str
    g_per_kwh: Fraction
    tier: Tier
    kind: Kind
    scope: Scope
    is_estimate: bool
    origin: Origin


class Intensities:
    """All intensities that are known; a look-up says how good its answer is.

    Args:
        yearly: The shipped table; of two rows of a zone and year the later one wins. It must have
            a row of WORLD.
        intervals: The operator's series; intervals of one zone, kind and grain do not overlap.
        constant: What stands for all hours that no interval covers, before the table does.
    """

    def __init__(
        self,
        yearly: Iterable[Yearly],
        intervals: Iterable[Interval] = (),
        constant: Factor | None = None,
    ) -> None:
        self._constant = constant
        self._years: dict[str, dict[int, Yearly]] = {}
        self._aliases: dict[str, str] = {}
        for row in yearly:
            if row.kind is Kind.AVERAGE:
                self._years.setdefault(row.zone, {})[row.year] = row
                self._aliases[row.alias or row.zone] = row.zone
        if WORLD not in self._years:
            raise ConfigError(f"table of yearly intensities: lacks the zone {WORLD}; add it")
        self._series: dict[tuple[str, Tier], list[Interval]] = {}
        for interval in sorted(intervals, key=lambda one: one.begin_unix_s):
            if interval.kind is Kind.AVERAGE:
                self._series.setdefault((interval.zone, interval.grain), []).append(interval)

    def book_factor(self, zone: str, hour_unix_s: int) -> Factor:
        """Return the average intensity of the hour that begins at ``hour_unix_s``.

        The first that there is of: the operator's intervals that cover the whole hour, by grain;
        the operator's constant; the zone's table row of that year, else of the nearest; its
        country's, if the zone is a region such as ``US-CAL``; the world's.
        """
        for tier in (Tier.HOUR, Tier.MONTH, Tier.YEAR):
            covering = _covering(self._series.get((zone, tier), []), hour_unix_s)
            if covering:
                return _mean(covering, tier, hour_unix_s)
        if self._constant is not None:
            return self._constant
        year = date_of(hour_unix_s)[0]
        for name in (zone, zone.partition("-")[0]):
            found = self._years.get(self._aliases.get(name, name))
            if found is not None and name != WORLD:
                return _of_year(found, year, Tier.YEAR)
        return _of_year(self._years[WORLD], year, Tier.WORLD)


def _covering(series: Sequence[Interval], hour_unix_s: int) -> Sequence[Interval]:
    """Return the intervals that cover the whole hour without a gap; none if they don't."""
    first = bisect.bisect_right(series, hour_unix_s, key=lambda one: one.begin_unix_s) - 1
    reached, found = hour_unix_s, []
    for interval in series[max(first, 0) :]:
        if not interval.begin_unix_s <= reached < interval.end_unix_s:
            break
        found.append(interval)
        reached = interval.end_unix_s
        if reached >= hour_unix_s + HOUR_S:
            return found
    return ()


def _mean(covering: Sequence[Interval], tier: Tier, hour_unix_s: int) -> Factor:
    """Return the mean over the hour, weighted by time; nothing is interpolated."""
    total = Fraction()
    for interval in covering:
        begin = max(interval.begin_unix_s, hour_unix_s)
        total += interval.g_per_kwh * (min(interval.end_unix_s, hour_unix_s + HOUR_S) - begin)
    first = covering[0]
    return Factor(
        zone=first.zone,
        g_per_kwh=total / HOUR_S,
        tier=tier,
        kind=first.kind,
        scope=first.scope,
        is_estimate=any(interval.is_estimate for interval in covering),
        origin=first.origin,
    )


def _of_year(rows: dict[int, Yearly], year: int, tier: Tier) -> Factor:
    """Return the row of the last year up to ``year``, else of the first one after it."""
    before = [known for known in rows if known <= year]
    row = rows[max(before) if before else min(rows)]
    return Factor(
        zone=row.zone,
        g_per_kwh=row.g_per_kwh,
        tier=tier,
        kind=row.kind,
        scope=row.scope,
        is_estimate=tier is Tier.WORLD or row.year != year,
        origin=row.origin,
    )
