"""Keep a ledger from growing for ever: old windows become hours, old requests become sums."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.settle import HOUR_S
from nodeserve.ledger.schema import SEALED

_HOURS_A_DAY: Final = 24

MAX_REQUESTS: Final = 2000
"""Requests that are dropped in one transaction, so that nobody waits long for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """For how long each window, and each request, is kept by itself, in days."""

    window_days: float
    request_days: float


def fold(connection: sqlite3.Connection, retention: Retention, *, now_unix_s: float) -> bool:
    """Fold some of what is old, within the caller's transaction; return whether more is left."""
    hour = int(now_unix_s // HOUR_S)
    oldest_window = hour - int(retention.window_days * _HOURS_A_DAY)
    oldest_request_ms = round((now_unix_s - retention.request_days * _HOURS_A_DAY * HOUR_S) * 1000)
    more = _fold_windows(connection, oldest_window)
    return _fold_requests(connection, oldest_request_ms) or more


def _fold_windows(db: sqlite3.Connection, oldest_hour: int) -> bool:
    """Fold each meter's first hour that is old enough; the chain goes on at its last window."""
    more = False
    meters = db.execute("SELECT meter_id FROM meter").fetchall()
    for (meter_id,) in meters:
        first = db.execute(
            "SELECT number, hour FROM window WHERE meter_id = ? ORDER BY number LIMIT 1",
            (meter_id,),
        ).fetchone()
        if first is None or first[1] >= oldest_hour:
            continue
        # Up to the first window of another hour: by number, for the wall clock may go back.
        after = db.execute(
            "SELECT min(number) FROM window WHERE meter_id = ? AND hour <> ?", (meter_id, first[1])
        ).fetchone()[0]
        rows = db.execute(
            "SELECT epoch, count(*), max(number), sum(span_ms), sum(metered_mj),"
            " sum(allocated_mj), sum(idle_mj), sum(quarantine_mj),"
            " sum(CASE WHEN is_estimate THEN metered_mj ELSE 0 END)"
            " FROM window WHERE meter_id = ? AND (?2 IS NULL OR number < ?2) GROUP BY epoch",
            (meter_id, after),
        ).fetchall()
        for epoch, windows, last, *sums in rows:
            digest = db.execute(
                "SELECT digest FROM window WHERE meter_id = ? AND number = ?", (meter_id, last)
            ).fetchone()[0]
            _add_hour(db, (meter_id, first[1], epoch), (windows, last, digest), sums)
        db.execute(
            "DELETE FROM window WHERE meter_id = ? AND (?2 IS NULL OR number < ?2)",
            (meter_id, after),
        )
        more = True
    return more


def _add_hour(
    db: sqlite3.Connection,
    key: tuple[int, int, int],
    chain: tuple[int, int, bytes],
    sums: Sequence[int],
) -> None:
    before = db.execute(
        "SELECT windows, span_ms, metered_mj, allocated_mj, idle_mj, quarantine_mj, estimated_mj"
        " FROM meter_hour WHERE meter_id = ? AND hour = ? AND epoch = ?",
        key,
    ).fetchone()
    windows, last, digest = chain
    if before is not None:
        windows += before[0]
        sums = [old + new for old, new in zip(before[1:], sums, strict=True)]
    _replace(db, "meter_hour", [(*key, windows, last, digest, *sums)])


def _fold_requests(db: sqlite3.Connection, oldest_unix_ms: int) -> bool:
    """Sum and drop requests that ended, or were last heard of, long ago."""
    keys = [
        row[0]
        for row in db.execute(
            "SELECT key FROM request WHERE coalesce(ended_unix_ms, arrived_unix_ms, 0) < ?"
            " ORDER BY key LIMIT ?",
            (oldest_unix_ms, MAX_REQUESTS),
        )
    ]
    if not keys:
        return False
    db.execute("CREATE TEMP TABLE IF NOT EXISTS old (key INTEGER PRIMARY KEY)")
    db.execute("DELETE FROM old")
    db.executemany("INSERT INTO old VALUES (?)", [(key,) for key in keys])
    _add_sums(
        db,
        "settled_hour",
        5,
        "SELECT s.hour, s.meter_id, r.place_id, s.role, s.is_scrap, sum(s.mj)"
        " FROM old JOIN request r USING (key) JOIN share s ON s.request_key = r.key"
        " GROUP BY 1, 2, 3, 4, 5",
    )
    ended = " FROM old JOIN request USING (key) WHERE outcome IS NOT NULL"
    _add_sums(
        db,
        "token_settled",
        3,
        "SELECT end_hour, place_id, role, sum(requests), sum(prompt), sum(cached), sum(output),"  # noqa: S608
        " sum(scrap) FROM ("
        "SELECT end_hour, place_id, prompt_role AS role, 0 AS requests, prompt_tokens AS prompt,"
        f" cached_tokens AS cached, 0 AS output, 0 AS scrap{ended} UNION ALL "
        "SELECT end_hour, place_id, output_role, 1, 0, 0, output_tokens, scrap_tokens"
        f"{ended}) GROUP BY 1, 2, 3",
    )
    for table, column in (("share", "request_key"), ("scrap_leg", "request_key")):
        db.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT key FROM old)")  # noqa: S608
    db.execute("DELETE FROM request WHERE key IN (SELECT key FROM old)")
    return len(keys) == MAX_REQUESTS


def _add_sums(db: sqlite3.Connection, table: str, num_keys: int, query: str) -> None:
    """Add to a table of sums what ``query`` finds: its keys, then its sums."""
    columns = SEALED[table]
    keys, sums = columns[:num_keys], columns[num_keys:]
    where = " AND ".join(f"{column} = ?" for column in keys)
    rows = []
    for row in db.execute(query).fetchall():
        before = db.execute(
            f"SELECT {', '.join(sums)} FROM {table} WHERE {where}",  # noqa: S608
            row[:num_keys],
        ).fetchone()
        new = row[num_keys:]
        if before is not None:
            new = tuple(a + b for a, b in zip(before, new, strict=True))
        rows.append((*row[:num_keys], *new))
    _replace(db, table, rows)


def _replace(db: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Write rows of a table with seals, each given by what its seal is over."""
    marks = ", ".join(f"?{place}" for place in range(1, len(SEALED[table]) + 1))
    db.executemany(
        f"INSERT OR REPLACE INTO {table} VALUES ({marks}, seal_of({marks}))",  # noqa: S608
        rows,
    )
