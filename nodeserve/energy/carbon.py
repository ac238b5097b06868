"""What energy stands for in CO2e: hour by hour, with where each factor is from.

The ledger holds energy alone. Carbon is a view of it: a better factor restates the figures, and
changes nothing that was booked.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Generic, TypeVar

from nodeserve.energy.apportion import round_parts
from nodeserve.energy.intensity import Factor, Intensities, Kind, Origin, Scope, Tier
from nodeserve.energy.sci import Sites, operational_g
from nodeserve.energy.units import micrograms

K = TypeVar("K", bound=Hashable)

_WORST_LAST: Final = (Tier.HOUR, Tier.MONTH, Tier.YEAR, Tier.CONSTANT, Tier.WORLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorUse:
    """An origin of intensities, and what it was used for.

    ``zone`` is the zone where the energy was used, ``factor_zone`` what the intensity is of.
    """

    zone: str
    factor_zone: str
    tier: Tier
    kind: Kind
    scope: Scope
    is_estimate: bool
    origin: Origin
    lowest_g_per_kwh: Fraction
    highest_g_per_kwh: Fraction
    energy_mj: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CarbonFigure:
    """Micrograms of CO2e, location-based, with all that they rest on."""

    mass_ug: int
    uses: tuple[FactorUse, ...]

    @property
    def tier(self) -> Tier | None:
        """The least close tier among the factors; None for a figure of nothing."""
        return max((use.tier for use in self.uses), key=_WORST_LAST.index, default=None)

    @property
    def kind(self) -> Kind | None:
        """What the factors are: averages, always; None for a figure of nothing."""
        return self.uses[0].kind if self.uses else None

    @property
    def is_estimate(self) -> bool:
        """Whether any factor is an estimate, or of another year or place."""
        return any(use.is_estimate for use in self.uses)


class CarbonBook(Generic[K]):
    """Adds up energy by group, place and hour, then says what it stands for."""

    def __init__(self, intensities: Intensities, sites: Sites) -> None:
        self._intensities = intensities
        self._sites = sites
        self._energy_mj: dict[tuple[K, str, int], int] = {}

    def add(self, group: K, zone: str, hour_unix_s: int, energy_mj: int) -> None:
        """Note energy of a group that was used in a zone, in the hour that begins then."""
        place = (group, zone, hour_unix_s)
        self._energy_mj[place] = self._energy_mj.get(place, 0) + energy_mj

    def figures(self) -> Mapping[K, CarbonFigure]:
        """Return each group's carbon. The figures add up to the rounded sum of the exact ones."""
        factors: dict[tuple[str, int], Factor] = {}
        exact_ug: dict[K, Fraction] = {}
        uses: dict[K, dict[object, FactorUse]] = {}
        for (group, zone, hour), energy_mj in self._energy_mj.items():
            factor = factors.get((zone, hour))
            if factor is None:
                factor = factors[zone, hour] = self._intensities.book_factor(zone, hour)
            mass_ug = micrograms(operational_g(energy_mj, self._sites.pue_of(zone), factor))
            exact_ug[group] = exact_ug.get(group, Fraction()) + mass_ug
            if energy_mj:
                _note(uses.setdefault(group, {}), zone, factor, energy_mj)
        return {
            group: CarbonFigure(mass_ug=mass_ug, uses=tuple(uses.get(group, {}).values()))
            for group, mass_ug in round_parts(exact_ug).items()
        }


def _note(uses: dict[object, FactorUse], zone: str, factor: Factor, energy_mj: int) -> None:
    key = (zone, factor.zone, factor.tier, factor.kind, factor.scope, factor.origin)
    known = uses.get((key, factor.is_estimate))
    grams = factor.g_per_kwh
    uses[key, factor.is_estimate] = FactorUse(
        zone=zone,
        factor_zone=factor.zone,
        tier=factor.tier,
        kind=factor.kind,
        scope=factor.scope,
        is_estimate=factor.is_estimate,
        origin=factor.origin,
        lowest_g_per_kwh=grams if known is None else min(known.lowest_g_per_kwh, grams),
        highest_g_per_kwh=grams if known is None else max(known.highest_g_per_kwh, grams),
        energy_mj=energy_mj + (0 if known is None else known.energy_mj),
    )
