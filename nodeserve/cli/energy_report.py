"""``nodeserve energy report``: energy, carbon and cost of what the node has served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from nodeserve.cli.energy_factors import factors_option, find_factors
from nodeserve.cli.energy_ledger import (
    find_ledger,
    ledger_options,
    period_options,
    read_hours,
    read_period,
)
from nodeserve.cli.status import table
from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.report import By, Report, make_report
from nodeserve.energy.report_basis import Basis, basis_lines, basis_of
from nodeserve.energy.report_columns import ENERGY_FIELDS, Field, to_csv, to_json, to_rows

FORMATS: Final = ("table", "json", "csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a command shows of a report: columns, what they rest on, and which lines."""

    fields: Sequence[Field]
    about: Callable[[Basis], list[str]]
    trim: Callable[[Report], Report] = lambda report: report


ENERGY_VIEW: Final = View(fields=ENERGY_FIELDS, about=basis_lines)


def format_option(function: click.decorators.FC) -> click.decorators.FC:
    """Add ``--format`` to a command."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="For people, or for programs.",
    )(function)


def by_option(function: click.decorators.FC) -> click.decorators.FC:
    """Add ``--by`` to a command."""
    return click.option(
        "--by",
        type=click.Choice([by.value for by in By]),
        default=By.LISTENER.value,
        show_default=True,
        help="What has a line each.",
    )(function)


@click.command("report")
@by_option
@format_option
@period_options
@factors_option
@ledger_options
def command(  # noqa: PLR0913, PLR0917  (click passes options by name)
    by: str,
    form: str,
    since: str | None,
    until: str | None,
    factors_file: str | None,
    db: str | None,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Report energy, carbon and cost, with all that the figures rest on."""
    period = read_period(since, until)
    path = find_ledger(db, socket, runtime_dir)
    part = read_hours(path, period)
    text = render(
        part.rows, By(by), form, period, factors_file=factors_file, directories=[path.parent]
    )
    click.echo(text)


def render(  # noqa: PLR0913  (what a report is made of)
    rows: LedgerRows,
    by: By,
    form: str,
    period: tuple[int, int],
    *,
    factors_file: str | None,
    directories: Sequence[Path],
    view: View = ENERGY_VIEW,
) -> str:
    """Return the report of ``rows`` in one of FORMATS, without a newline at its end.

    Raises:
        ConfigError: The factors cannot be used.
        InvariantError: The rows contradict each other.
    """
    factors, name = find_factors(factors_file, directories)
    report = view.trim(make_report(rows, by, factors, until_unix_s=period[1]))
    basis = basis_of(report, rows, factors, period=period, factors_name=name)
    match form:
        case "json":
            return to_json(report, view.fields, basis)
        case "csv":
            return to_csv(report, view.fields, basis).rstrip("\n")
        case _:
            headings, cells = to_rows(report, view.fields)
            headings[0] = by.value.upper()
            return "\n".join([*table(headings, cells), "", *view.about(basis)])
