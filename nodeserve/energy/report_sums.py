"""Add up pieces of energy, tokens and what follows from them, group by group."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nodeserve.energy.apportion import round_parts
from nodeserve.energy.carbon import CarbonBook, CarbonFigure
from nodeserve.energy.intensity import Intensities
from nodeserve.energy.ledger_rows import Column, Piece
from nodeserve.energy.prices import Prices
from nodeserve.energy.report_lines import Line, Phase, TokenSums
from nodeserve.energy.rows import TokenRow
from nodeserve.energy.sci import Embodied, Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What turns energy and tokens into carbon and money."""

    intensities: Intensities
    sites: Sites = field(default_factory=Sites)
    embodied: tuple[Embodied, ...] = ()
    prices: Prices | None = None


@dataclass(slots=True)
class _Group:
    """What one line will say, before anything is rounded."""

    is_metered: bool = False
    energy: dict[Column, int] = field(default_factory=dict)
    is_estimate: bool = False
    useful_by_role: dict[str, int] = field(default_factory=dict)
    tokens_by_role: dict[str, TokenSums] = field(default_factory=dict)
    tokens: TokenSums = field(default_factory=TokenSums)
    embodied_ug: int = 0
    cost: Fraction = field(default_factory=Fraction)
    settled_mj_by_zone: dict[str, int] = field(default_factory=dict)


class Sums:
    """The groups of a report. ``has_tokens``: whether tokens can be told apart by group."""

    def __init__(self, factors: Factors, *, has_tokens: bool) -> None:
        self._factors = factors
        self._has_tokens = has_tokens
        self._groups: dict[str, _Group] = {}
        self._carbon: CarbonBook[str] = CarbonBook(factors.intensities, factors.sites)

    def add_energy(self, name: str, piece: Piece, *, is_estimate: bool) -> None:
        """Add a piece of energy to a group."""
        group = self._group(name)
        group.is_metered = True
        group.energy[piece.column] = group.energy.get(piece.column, 0) + piece.amount
        group.is_estimate = group.is_estimate or (is_estimate and piece.amount > 0)
        if piece.column is Column.USEFUL:
            of_role = group.useful_by_role
            of_role[piece.role] = of_role.get(piece.role, 0) + piece.amount
        if piece.column is not Column.QUARANTINE:
            place, by_zone = piece.place, group.settled_mj_by_zone
            by_zone[place.zone] = by_zone.get(place.zone, 0) + piece.amount
            self._carbon.add(name, place.zone, place.hour_unix_s, piece.amount)

    def add_embodied(self, name: str, piece: Piece) -> None:
        """Add a piece of embodied carbon, in micrograms, to a group."""
        group = self._group(name)
        group.is_metered = True
        group.embodied_ug += piece.amount

    def add_tokens(self, name: str, row: TokenRow, *, is_metered: bool) -> None:
        """Add a row of tokens to a group; not ``is_metered``: nobody knows their energy."""
        group = self._group(name)
        prices = self._factors.prices
        cost = prices.cost_of(row) if prices is not None else None
        group.cost += cost or 0
        served = row.prompt_tokens + row.output_tokens
        sums = TokenSums(
            requests=row.requests,
            prompt=row.prompt_tokens,
            cached=row.cached_tokens,
            output=row.output_tokens,
            scrap=row.scrap_tokens,
            unmetered=0 if is_metered else served,
            unpriced=served if cost is None else 0,
        )
        group.tokens = group.tokens.plus(sums)
        of_role = group.tokens_by_role.get(row.role, TokenSums())
        group.tokens_by_role[row.role] = of_role.plus(sums)

    def lines(self, seconds: Mapping[str, float], *, knows_embodied: bool) -> list[Line]:
        """Return a line for each group; ``seconds`` is each group's time for rates."""
        carbon = self._carbon.figures()
        costs = round_parts({name: group.cost for name, group in self._groups.items()})
        electricity_costs = round_parts(self._electricity())
        return [
            self._line(
                name,
                seconds[name],
                carbon.get(name),
                group.embodied_ug if knows_embodied else None,
                (costs[name], electricity_costs.get(name)),
            )
            for name, group in self._groups.items()
        ]

    def _electricity(self) -> dict[str, Fraction]:
        """Return what each group's electricity costs; nothing where it has no price."""
        prices, sites = self._factors.prices, self._factors.sites
        if prices is None or prices.electricity_per_kwh is None:
            return {}
        return {
            name: sum(
                (
                    prices.electricity(energy_mj, sites.pue_of(zone)) or Fraction()
                    for zone, energy_mj in group.settled_mj_by_zone.items()
                ),
                Fraction(),
            )
            for name, group in self._groups.items()
        }

    def _line(
        self,
        name: str,
        seconds: float,
        carbon: CarbonFigure | None,
        embodied_ug: int | None,
        costs: tuple[int, int | None],
    ) -> Line:
        group = self._groups[name]
        is_metered = group.is_metered
        cost, electricity = costs
        is_priced = self._has_tokens and self._factors.prices is not None
        roles = dict.fromkeys((*group.useful_by_role, *group.tokens_by_role))
        return Line(
            name=name,
            seconds=seconds,
            tokens=group.tokens if self._has_tokens else None,
            energy={c: group.energy.get(c, 0) for c in Column} if is_metered else None,
            is_estimate=group.is_estimate,
            phases={
                role: Phase(
                    useful_mj=group.useful_by_role.get(role, 0),
                    tokens=group.tokens_by_role.get(role, TokenSums()),
                )
                for role in roles
            },
            carbon=carbon if is_metered else None,
            embodied_ug=embodied_ug if is_metered else None,
            cost=cost if is_priced and not group.tokens.unpriced else None,
            electricity_cost=electricity if is_metered else None,
        )

    def _group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())
