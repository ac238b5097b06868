"""Resolve how energy and tokens are booked."""

from pathlib import Path

from nodeserve.config.node import AccountingSettings
from nodeserve.config.problems import Problems
from nodeserve.config.schema import AccountingTable, HealthTable


def resolve_accounting(
    table: AccountingTable, health: HealthTable, problems: Problems
) -> AccountingSettings | None:
    """Return what the file asks for; None where nothing is booked."""
    for key, days in (("window_days", table.window_days), ("request_days", table.request_days)):
        if not 0 < days < float("inf"):
            problems.add(f"accounting.{key}", f"is {days}: use more than 0")
    if not table.enabled:
        if health.overrides:
            text = "is set, but devices are not watched: set `accounting.enabled`"
            problems.add("health.overrides", text)
        return None
    if table.db is not None and not Path(table.db).is_absolute():
        problems.add("accounting.db", f"is {table.db!r}: give the whole path of a file")
    return AccountingSettings(
        db_path=table.db,
        node=table.node,
        zone=table.zone,
        window_days=table.window_days,
        request_days=table.request_days,
        health_overrides=health.overrides,
    )
