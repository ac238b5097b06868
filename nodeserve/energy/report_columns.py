"""A report's figures as columns: one list for the table, JSON and CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

import msgspec

from nodeserve.energy.carbon import CarbonFigure
from nodeserve.energy.ledger_rows import Column
from nodeserve.energy.report import Report
from nodeserve.energy.report_basis import UNKNOWN, Basis
from nodeserve.energy.report_lines import Line, TokenSums
from nodeserve.energy.units import amount, grams, joules
from nodeserve.wire.kinds import Role

Figure: TypeAlias = int | float | Fraction | str | bool | None

NOT_APPLICABLE: Final = "-"
"""What stands in a table where a figure has no meaning, as energy per token without tokens."""


@dataclass(frozen=True, slots=True)
class Field:
    """One figure. ``heading`` is empty where the table leaves it out.

    ``basis`` counts what the figure is of: where that is 0, it has no meaning.
    """

    key: str
    heading: str
    value: Callable[[Line], Figure]
    basis: Callable[[Line], int] = lambda _: 1


def _served(line: Line) -> int:
    return 0 if line.tokens is None else line.tokens.served


def _output(line: Line) -> int:
    return 0 if line.tokens is None else line.tokens.output


def _prefilled(line: Line) -> int:
    phase = line.phases.get(Role.PREFILL.value)
    return 0 if phase is None else phase.tokens.computed_prompt


def _decoded(line: Line) -> int:
    phase = line.phases.get(Role.DECODE.value)
    return 0 if phase is None else phase.tokens.output


def _settled(line: Line) -> int:
    return 1 if line.settled_mj is None else line.settled_mj


def _tokens(get: Callable[[TokenSums], int]) -> Callable[[Line], Figure]:
    return lambda line: None if line.tokens is None else get(line.tokens)


def _part(column: Column) -> Callable[[Line], Figure]:
    return lambda line: line.part_mj(column)


def _carbon(get: Callable[[CarbonFigure], Figure]) -> Callable[[Line], Figure]:
    return lambda line: None if line.carbon is None else get(line.carbon)


def _sources(carbon: CarbonFigure) -> str:
    found = (f"{use.origin.source} {use.origin.vintage}" for use in carbon.uses)
    return "; ".join(dict.fromkeys(found))


def _in_joules(energy_mj: int | None) -> Figure:
    return None if energy_mj is None else joules(energy_mj)


def _in_grams(mass_ug: int | None) -> Figure:
    return None if mass_ug is None else grams(mass_ug)


def _in_money(millionths: int | None) -> Figure:
    return None if millionths is None else amount(millionths)


USAGE_FIELDS: Final = (
    Field("name", "NAME", lambda line: line.name),
    Field("requests", "REQUESTS", _tokens(lambda t: t.requests), basis=_served),
    Field("prompt_tokens", "PROMPT", _tokens(lambda t: t.prompt), basis=_served),
    Field("cached_tokens", "CACHED", _tokens(lambda t: t.cached), basis=_served),
    Field("output_tokens", "OUTPUT", _tokens(lambda t: t.output), basis=_served),
    Field("scrap_tokens", "SCRAP", _tokens(lambda t: t.scrap), basis=_served),
    Field("tokens_per_s", "TOKENS/S", lambda line: line.tokens_per_s, basis=_served),
    Field("cost", "COST", lambda line: _in_money(line.cost), basis=_served),
    Field(
        "cost_per_million_tokens",
        "COST/1M",
        lambda line: line.cost_per_million_tokens,
        basis=_served,
    ),
)

ENERGY_FIELDS: Final = (
    Field("name", "NAME", lambda line: line.name),
    Field("requests", "", _tokens(lambda t: t.requests), basis=_served),
    Field("tokens", "TOKENS", _tokens(lambda t: t.served), basis=_served),
    *(Field(f.key, "", f.value, basis=_served) for f in USAGE_FIELDS[2:6]),
    Field("tokens_per_s", "TOKENS/S", lambda line: line.tokens_per_s, basis=_served),
    Field("metered_mj", "", lambda line: line.metered_mj),
    Field("useful_mj", "", _part(Column.USEFUL)),
    Field("scrap_mj", "", _part(Column.SCRAP)),
    Field("unattributed_mj", "", _part(Column.UNATTRIBUTED)),
    Field("idle_mj", "", _part(Column.IDLE)),
    Field("quarantine_mj", "", _part(Column.QUARANTINE)),
    Field("energy_estimated", "", lambda line: line.is_estimate),
    Field("settled_j", "J", lambda line: _in_joules(line.settled_mj)),
    Field("scrap_j", "SCRAP J", lambda line: _in_joules(line.part_mj(Column.SCRAP))),
    Field("idle_j", "IDLE J", lambda line: _in_joules(line.part_mj(Column.IDLE))),
    Field("j_per_token", "J/TOKEN", lambda line: line.j_per_token, basis=_served),
    Field("j_per_output_token", "", lambda line: line.j_per_output_token, basis=_output),
    Field("settled_j_per_token", "", lambda line: line.settled_j_per_token, basis=_served),
    Field("prefill_j_per_token", "PREFILL", lambda line: line.prefill_j_per_token, _prefilled),
    Field("decode_j_per_token", "DECODE", lambda line: line.decode_j_per_token, _decoded),
    Field("gco2e", "gCO2e", _carbon(lambda c: grams(c.mass_ug)), _settled),
    Field("carbon_kind", "", _carbon(lambda c: c.kind), _settled),
    Field("carbon_tier", "", _carbon(lambda c: c.tier), _settled),
    Field("carbon_estimated", "", _carbon(lambda c: c.is_estimate), _settled),
    Field("carbon_source", "", _carbon(_sources), _settled),
    Field("gco2e_per_1k_tokens", "g/1k", lambda line: line.g_per_1k_tokens, basis=_served),
    Field("embodied_gco2e", "EMBODIED g", lambda line: _in_grams(line.embodied_ug)),
    Field(
        "sci_g_per_million_tokens",
        "SCI g/1M",
        lambda line: line.sci_g_per_million_tokens,
        basis=_served,
    ),
    Field("cost", "", lambda line: _in_money(line.cost), basis=_served),
    Field(
        "cost_per_million_tokens",
        "COST/1M",
        lambda line: line.cost_per_million_tokens,
        basis=_served,
    ),
    Field("electricity_cost", "", lambda line: _in_money(line.electricity_cost)),
    Field(
        "electricity_per_million_tokens",
        "",
        lambda line: line.electricity_per_million_tokens,
        basis=_served,
    ),
)


def to_rows(report: Report, fields: Sequence[Field]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return headings and rows of a table for people; the total is the last row."""
    shown = [field for field in fields if field.heading]
    rows = [tuple(_cell(f, line) for f in shown) for line in (*report.lines, report.total)]
    return [field.heading for field in shown], rows


def to_json(report: Report, fields: Sequence[Field], basis: Basis) -> str:
    """Return the report as JSON: null is what is unknown or has no meaning."""
    whole = {
        "by": report.by.value,
        "seconds": report.seconds,
        "lines": [_plain(line, fields) for line in report.lines],
        "total": _plain(report.total, fields),
        "basis": msgspec.to_builtins(basis),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def to_csv(report: Report, fields: Sequence[Field], basis: Basis) -> str:
    """Return the lines as CSV, each with what its figures rest on; without the total.

    What is not known is ``unknown``; what has no meaning for a line is empty.
    """
    rests_on = {
        "boundary": basis.boundary,
        "method": basis.method,
        "pue": "; ".join(basis.pue),
        "embodied": "; ".join(basis.embodied),
        "prices": basis.prices,
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([report.by.value, *(f.key for f in fields[1:]), *rests_on])
    for line in report.lines:
        cells = (_csv_cell(field, line) for field in fields)
        writer.writerow([*cells, *rests_on.values()])
    return out.getvalue()


def _plain(line: Line, fields: Sequence[Field]) -> dict[str, int | float | str | None]:
    figures = ((field.key, field.value(line)) for field in fields)
    return {key: float(x) if isinstance(x, Fraction) else x for key, x in figures}


def _cell(field: Field, line: Line) -> str:
    value = field.value(line)
    if value is None:
        return NOT_APPLICABLE if not field.basis(line) else UNKNOWN
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else number(float(value))


def _csv_cell(field: Field, line: Line) -> str:
    value = field.value(line)
    if value is None:
        return "" if not field.basis(line) else UNKNOWN
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value)) if isinstance(value, float | Fraction) else str(value)


def number(value: float) -> str:
    """Write a number with as many digits as people read: three or more that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}" if value else "0"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
