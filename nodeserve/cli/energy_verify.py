"""``nodeserve energy verify``: the proof that the ledger adds up."""

import sqlite3
from contextlib import closing
from typing import Final

import click

from nodeserve.cli.energy_ledger import find_ledger, ledger_options
from nodeserve.cli.status import table
from nodeserve.errors import CapacityError
from nodeserve.ledger.database import open_to_read
from nodeserve.ledger.verify import Verdict, verify

BROKEN: Final = 1
"""The exit code of a ledger that does not add up."""

_HEADINGS: Final = (
    *("METER", "KIND", "WINDOWS", "METERED mJ", "= ALLOCATED", "+ IDLE", "+ QUARANTINE"),
    *("ALLOCATED =", "REQUESTS", "+ UNATTRIBUTED"),
)


@click.command("verify")
@ledger_options
@click.pass_context
def command(
    ctx: click.Context, db: str | None, socket: str | None, runtime_dir: str | None
) -> None:
    """Prove that metered is allocated, idle and quarantine, to the millijoule.

    For every window, meter and hour; that what is allocated is borne by requests or accounts;
    that tokens add up likewise; and that nothing was changed or left out since it was booked.
    Ends with 1 and the rows that break this, where one does. A node may write meanwhile.
    """
    path = find_ledger(db, socket, runtime_dir)
    try:
        with closing(open_to_read(path)) as connection:
            verdict = verify(connection)
    except (sqlite3.DatabaseError, CapacityError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, sqlite3.DatabaseError) or "malformed" not in str(cause):
            raise
        click.echo(f"nodeserve: ledger {path}: is damaged: {cause}", err=True)
        ctx.exit(BROKEN)
    click.echo("\n".join(to_lines(verdict)))
    for problem in verdict.problems:
        click.echo(f"nodeserve: ledger {path}: {problem.row}: {problem.text}", err=True)
    if verdict.problems:
        ctx.exit(BROKEN)


def to_lines(verdict: Verdict) -> list[str]:
    """Return the sums as a table, and what was found."""
    rows = [
        (
            meter.meter,
            meter.kind,
            str(meter.windows),
            str(meter.metered_mj),
            str(meter.allocated_mj),
            str(meter.idle_mj),
            str(meter.quarantine_mj),
            "",
            str(meter.requests_mj),
            str(meter.accounts_mj),
        )
        for meter in verdict.sums
    ]
    lines = table(_HEADINGS, rows) if rows else ["nothing is metered"]
    count = len(verdict.problems)
    return [*lines, "", f"{count} rows do not hold" if count else "everything adds up"]
