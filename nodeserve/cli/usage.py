"""``nodeserve usage``: tokens by listener, model, role, hour, node or zone."""

from dataclasses import replace
from typing import Final

import click

from nodeserve.cli.energy_factors import factors_option
from nodeserve.cli.energy_ledger import (
    find_ledger,
    ledger_options,
    period_options,
    read_hours,
    read_period,
)
from nodeserve.cli.energy_report import View, format_option, render
from nodeserve.energy.ledger_rows import SYSTEM_MARK
from nodeserve.energy.report import By, Report
from nodeserve.energy.report_basis import usage_lines
from nodeserve.energy.report_columns import USAGE_FIELDS


def without_accounts(report: Report) -> Report:
    """Leave out the lines of energy that nobody can be named for: they have no tokens."""
    return replace(
        report, lines=[line for line in report.lines if not line.name.startswith(SYSTEM_MARK)]
    )


_VIEW: Final = View(fields=USAGE_FIELDS, about=usage_lines, trim=without_accounts)


@click.command("usage")
@click.option(
    "--by",
    type=click.Choice([by.value for by in By if by is not By.GPU]),
    default=By.LISTENER.value,
    show_default=True,
    help="What has a line each.",
)
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
    """Show requests and tokens: prompt, cached, output, scrap, per second, and what they cost."""
    period = read_period(since, until)
    path = find_ledger(db, socket, runtime_dir)
    part = read_hours(path, period)
    text = render(
        part.rows,
        By(by),
        form,
        period,
        factors_file=factors_file,
        directories=[path.parent],
        view=_VIEW,
    )
    click.echo(text)
