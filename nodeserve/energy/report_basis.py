"""What a report rests on: boundary, method, zones, factors, and what is not known.

Everything here goes with the figures, into every format: a figure without it is none.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from nodeserve.energy.carbon import FactorUse
from nodeserve.energy.ledger_rows import Column, LedgerRows
from nodeserve.energy.report import Report
from nodeserve.energy.report_sums import Factors
from nodeserve.energy.sci import find_embodied
from nodeserve.energy.units import joules
from nodeserve.energy.utc import HOUR_S, write_utc

METHOD: Final = "roofline-window/1"
"""Metered windows, shared by roofline weights, by largest remainder; see docs/energy.md."""

UNKNOWN: Final = "unknown"
NOT_SUPPLIED: Final = "not supplied"

_BOUNDARIES: Final = {"gpu": "gpu", "cpu": "cpu package", "simulated": "simulated, not measured"}


class FactorBasis(msgspec.Struct, frozen=True, kw_only=True):
    """One origin of intensities, and how much energy it was used for."""

    zone: str
    factor_zone: str
    lowest_g_per_kwh: float
    highest_g_per_kwh: float
    tier: str
    kind: str
    scope: str
    estimated: bool
    source: str
    vintage: str
    licence: str
    energy_mj: int


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a report rests on; times are UTC."""

    since: str
    until: str
    nodes: tuple[str, ...]
    zones: tuple[str, ...]
    devices: tuple[str, ...]
    boundary: str
    method: str
    pue: tuple[str, ...]
    intensity: tuple[FactorBasis, ...]
    embodied: tuple[str, ...]
    prices: str
    factors: str
    notes: tuple[str, ...]


def basis_of(
    report: Report,
    rows: LedgerRows,
    factors: Factors,
    *,
    period: tuple[int, int],
    factors_name: str,
) -> Basis:
    """Return what ``report`` of ``rows`` rests on.

    ``period`` are the Unix times from and until which rows were asked for, ``factors_name`` says
    which file the factors are from.
    """
    places = [(row.node, row.zone, row.hour_unix_s) for row in rows.meters]
    places += [(row.node, row.zone, row.hour_unix_s) for row in rows.tokens]
    zones = sorted({zone for _, zone, _ in places})
    kinds = sorted({meter.kind for meter in rows.meters}, reverse=True)
    boundary = " + ".join(_BOUNDARIES.get(kind, kind) for kind in kinds)
    uses = report.total.carbon.uses if report.total.carbon is not None else ()
    return Basis(
        since=write_utc(min([hour for _, _, hour in places], default=period[0])),
        until=write_utc(
            min(period[1], max([hour + HOUR_S for _, _, hour in places], default=period[1]))
        ),
        nodes=tuple(sorted({node for node, _, _ in places})),
        zones=tuple(zone or NOT_SUPPLIED for zone in zones),
        devices=tuple(
            sorted({f"{meter.node}/{meter.meter}: {meter.name}" for meter in rows.meters})
        ),
        boundary=boundary or f"nothing was metered: energy is {UNKNOWN}",
        method=METHOD,
        pue=tuple(_pue(zone, factors) for zone in zones),
        intensity=tuple(_of_factor(use) for use in uses),
        embodied=_embodied(report, rows, factors),
        prices=_prices(factors),
        factors=factors_name,
        notes=tuple(_notes(report, rows, uses, factors)),
    )


def usage_lines(basis: Basis) -> list[str]:
    """Return what figures of tokens and their cost rest on, for people, a line each."""
    return [
        f"period    {basis.since} to {basis.until}, by hours of UTC",
        f"nodes     {', '.join(basis.nodes) or 'none'}; zones: {', '.join(basis.zones) or 'none'}",
        f"prices    {basis.prices}",
        f"factors   {basis.factors}",
    ]


def basis_lines(basis: Basis) -> list[str]:
    """Return the basis of figures of energy for people, a line each."""
    lines = [
        f"boundary  {basis.boundary}",
        f"method    {basis.method}; accuracy of the meters: not stated by their vendors",
        *(f"pue       {pue}" for pue in basis.pue),
    ]
    for use in basis.intensity:
        lowest, highest = f"{use.lowest_g_per_kwh:g}", f"{use.highest_g_per_kwh:g}"
        grams = lowest if lowest == highest else f"{lowest} to {highest}"
        estimated = ", estimated" if use.estimated else ""
        lines.append(
            f"carbon    {use.zone}: {grams} g/kWh, {use.kind}, {use.scope}, by {use.tier} of "
            f"{use.factor_zone}{estimated}; {use.source}, {use.vintage}, {use.licence}"
        )
    lines += [f"embodied  {text}" for text in basis.embodied]
    notes = [f"note      {note}" for note in basis.notes]
    return [*usage_lines(basis)[:2], *lines, *usage_lines(basis)[2:], *notes]


def _pue(zone: str, factors: Factors) -> str:
    pue = factors.sites.pue_of(zone)
    return f"{zone or NOT_SUPPLIED}: {float(pue.value):g} ({pue.source})"


def _of_factor(use: FactorUse) -> FactorBasis:
    return FactorBasis(
        zone=use.zone or NOT_SUPPLIED,
        factor_zone=use.factor_zone,
        lowest_g_per_kwh=float(use.lowest_g_per_kwh),
        highest_g_per_kwh=float(use.highest_g_per_kwh),
        tier=use.tier.value,
        kind=use.kind.value,
        scope=use.scope.value,
        estimated=use.is_estimate,
        source=use.origin.source,
        vintage=use.origin.vintage,
        licence=use.origin.licence,
        energy_mj=use.energy_mj,
    )


def _embodied(report: Report, rows: LedgerRows, factors: Factors) -> tuple[str, ...]:
    if report.unknown_embodied:
        names = ", ".join(report.unknown_embodied)
        return (f"{UNKNOWN}: no figure for {names}",)
    found = {find_embodied(meter.name, factors.embodied) for meter in rows.meters}
    return tuple(
        f"{known.match}: {float(known.g_per_device_hour):.1f} g per device-hour over "
        f"{float(known.life_years):g} years; {known.source}"
        for known in sorted((one for one in found if one is not None), key=lambda one: one.match)
    )


def _prices(factors: Factors) -> str:
    prices = factors.prices
    if prices is None:
        return NOT_SUPPLIED
    electricity = prices.electricity_per_kwh
    cost = NOT_SUPPLIED if electricity is None else f"{float(electricity):g}/kWh"
    return f"{prices.currency}, {len(prices.prices)} for tokens; electricity {cost}"


def _notes(
    report: Report, rows: LedgerRows, uses: Sequence[FactorUse], factors: Factors
) -> list[str]:
    total = report.total
    notes = []
    estimated_mj = sum(meter.estimated_mj for meter in rows.meters)
    if estimated_mj:
        notes.append(f"{float(joules(estimated_mj)):.1f} J are integrated power and no counter's")
    for column, what in (
        (Column.QUARANTINE, "are in quarantine, and in no other figure"),
        (Column.UNATTRIBUTED, "were used by requests that cannot be named"),
    ):
        part_mj = total.part_mj(column)
        if part_mj:
            notes.append(f"{float(joules(part_mj)):.1f} J {what}")
    if total.tokens is not None and total.tokens.unmetered:
        notes.append(
            f"{total.tokens.unmetered} tokens are of hours without a meter: what they took is "
            f"{UNKNOWN}"
        )
    if total.tokens is not None and total.tokens.unpriced and factors.prices is not None:
        notes.append(f"{total.tokens.unpriced} tokens have no price: their cost is {UNKNOWN}")
    if len({use.scope for use in uses}) > 1:
        notes.append("carbon mixes direct and lifecycle intensities: the sum is of neither scope")
    if any(use.zone == "" for use in uses):
        notes.append("a node says no zone, so the world's intensity stands for its own")
    return notes
