"""``nodeserve energy merge``: one report on the ledgers of several nodes."""

from pathlib import Path

import click

from nodeserve.cli.energy_factors import factors_option
from nodeserve.cli.energy_ledger import period_options, read_hours, read_period
from nodeserve.cli.energy_report import by_option, format_option, render
from nodeserve.energy.merge import merge
from nodeserve.energy.report import By


@click.command("merge")
@click.argument("ledgers", nargs=-1, required=True, metavar="NODE.db...", type=click.Path())
@by_option
@format_option
@period_options
@factors_option
def command(
    ledgers: tuple[str, ...],
    by: str,
    form: str,
    since: str | None,
    until: str | None,
    factors_file: str | None,
) -> None:
    """Report on several ledgers together; what would be counted twice is refused by name."""
    period = read_period(since, until)
    parts = [read_hours(Path(ledger).expanduser(), period) for ledger in ledgers]
    directories = list(dict.fromkeys(Path(part.name).parent for part in parts))
    text = render(
        merge(parts), By(by), form, period, factors_file=factors_file, directories=directories
    )
    click.echo(text)
