"""A report by hour as curves: power, tokens and energy per token over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.report import By, Report
from nodeserve.energy.report_lines import Line
from nodeserve.energy.units import watts
from nodeserve.energy.utc import HOUR_S, parse_utc
from nodeserve.errors import InvariantError


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: a value for each hour of its figure, None where it is not known."""

    label: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share an axis."""

    title: str
    unit: str
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels over the same hours, from the first to the last without a gap."""

    hours_unix_s: Sequence[int]
    panels: Sequence[Panel]
    caption: Sequence[str]


MAX_HOURS: Final = 24 * 366 * 10
"""Ten years: a longer figure is that of a clock that was wrong."""


def make_figure(report: Report, caption: Sequence[str]) -> Figure:
    """Return the figure of a report by hour.

    Raises:
        InvariantError: The report is not by hour, or is of more than ten years.
    """
    if report.by is not By.HOUR:
        raise InvariantError(f"a figure is made of a report by hour, this one is by {report.by}")
    lines = {parse_utc(line.name): line for line in report.lines}
    if lines and max(lines) - min(lines) > MAX_HOURS * HOUR_S:
        raise InvariantError(f"a report from {min(lines)} to {max(lines)} is too long to draw")
    hours = range(min(lines), max(lines) + HOUR_S, HOUR_S) if lines else range(0)
    found = [lines.get(hour) for hour in hours]
    power = (
        Curve("all", [_watts(line, None if line is None else line.settled_mj) for line in found]),
        Curve(
            "above idle", [_watts(line, None if line is None else line.active_mj) for line in found]
        ),
    )
    tokens = [None if line is None else line.tokens_per_s for line in found]
    prefill = [None if line is None else line.prefill_j_per_token for line in found]
    decode = [None if line is None else line.decode_j_per_token for line in found]
    each = [None if line is None else line.j_per_token for line in found]
    energy = [
        Curve(label, [None if value is None else float(value) for value in values])
        for label, values in (("served", each), ("prefill", prefill), ("decode", decode))
    ]
    panels = (
        Panel("Power", "W", power),
        Panel("Tokens served", "tokens/s", (Curve("prompt and output", tokens),)),
        Panel("Energy above idle per token", "J", energy),
    )
    return Figure(list(hours), panels, caption)


def _watts(line: Line | None, energy_mj: int | None) -> float | None:
    if line is None or energy_mj is None or line.seconds <= 0:
        return None
    return watts(energy_mj, line.seconds)
