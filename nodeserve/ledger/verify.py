"""Prove that a ledger adds up, or name the row that does not."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from nodeserve.energy.settle import HOUR_S
from nodeserve.ledger.schema import GENESIS, SEALED, WINDOW_COLUMNS, digest_of, seal_of

MAX_PROBLEMS: Final = 100
"""Rows that are named; one that is broken may break sums elsewhere."""

_KEYS: Final = {
    "meter_hour": 3,
    "share": 5,
    "account": 3,
    "settled_hour": 5,
    "token_hour": 3,
    "token_settled": 3,
}
"""How many of a table's columns name a row."""

_TOKENS: Final = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "scrap_tokens")

_ALLOCATED: Final = f"""
SELECT meter_id, hour, sum(allocated), sum(borne) FROM (
    SELECT meter_id, hour, allocated_mj AS allocated, 0 AS borne FROM window
    UNION ALL SELECT meter_id, hour, allocated_mj, 0 FROM meter_hour
    UNION ALL SELECT meter_id, hour, 0, mj FROM share
    UNION ALL SELECT meter_id, hour, 0, mj FROM account
    UNION ALL SELECT meter_id, hour, 0, mj FROM settled_hour
) GROUP BY 1, 2 HAVING sum(allocated) <> sum(borne) LIMIT {MAX_PROBLEMS}
"""  # noqa: S608  (no value of anybody's is in it)

_METERED: Final = """
SELECT meter_id, epoch, sum(counted), sum(windows) FROM (
    SELECT meter_id, epoch, metered_mj AS counted, 0 AS windows FROM epoch
    UNION ALL SELECT meter_id, epoch, 0, metered_mj FROM window
    UNION ALL SELECT meter_id, epoch, 0, metered_mj FROM meter_hour
) GROUP BY 1, 2 HAVING sum(counted) <> sum(windows)
"""

_COUNTERS: Final = """
SELECT m.meter, m.epoch, m.counter_mj, e.last_mj FROM meter m
LEFT JOIN epoch e ON e.meter_id = m.meter_id AND e.epoch = m.epoch
WHERE e.last_mj IS NOT m.counter_mj
"""

_EPOCHS: Final = """
SELECT meter_id, epoch, first_mj, last_mj, wrapped_mj, metered_mj FROM epoch
WHERE metered_mj <> last_mj - first_mj + wrapped_mj
"""

_TOKEN_SUMS: Final = f"""
SELECT hour, place_id, role, {", ".join(f"sum(a{n}), sum(b{n})" for n in range(5))} FROM (
    SELECT hour, place_id, role, {", ".join(f"{c} AS a{n}, 0 AS b{n}" for n, c in enumerate(_TOKENS))}
    FROM token_hour
    UNION ALL SELECT hour, place_id, role, {", ".join(f"0, {c}" for c in _TOKENS)}
    FROM token_settled
    UNION ALL SELECT end_hour, place_id, prompt_role, 0, 0, 0, prompt_tokens, 0, cached_tokens,
    0, 0, 0, 0 FROM request WHERE outcome IS NOT NULL
    UNION ALL SELECT end_hour, place_id, output_role, 0, 1, 0, 0, 0, 0,
    0, output_tokens, 0, scrap_tokens FROM request WHERE outcome IS NOT NULL
) GROUP BY 1, 2, 3 HAVING {" OR ".join(f"sum(a{n}) <> sum(b{n})" for n in range(5))}
LIMIT {MAX_PROBLEMS}
"""  # noqa: E501, S608

_SUMS: Final = """
SELECT m.meter, m.kind, m.name, sum(booked), sum(metered), sum(allocated), sum(idle),
    sum(quarantine), sum(legs), sum(accounts)
FROM (
    SELECT meter_id, 1 AS booked, metered_mj AS metered, allocated_mj AS allocated,
        idle_mj AS idle, quarantine_mj AS quarantine, 0 AS legs, 0 AS accounts FROM window
    UNION ALL SELECT meter_id, windows, metered_mj, allocated_mj, idle_mj, quarantine_mj, 0, 0
        FROM meter_hour
    UNION ALL SELECT meter_id, 0, 0, 0, 0, 0, mj, 0 FROM share
    UNION ALL SELECT meter_id, 0, 0, 0, 0, 0, mj, 0 FROM settled_hour
    UNION ALL SELECT meter_id, 0, 0, 0, 0, 0, 0, mj FROM account
) JOIN meter m USING (meter_id) GROUP BY meter_id ORDER BY m.meter
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSums:
    """One meter's energy in mJ: metered is allocated, idle and quarantine.

    What is allocated is borne by requests, and by accounts of what nobody is known to have used.
    """

    meter: str
    kind: str
    name: str
    windows: int
    metered_mj: int
    allocated_mj: int
    idle_mj: int
    quarantine_mj: int
    requests_mj: int
    accounts_mj: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A row that does not hold: which, and what is wrong with it."""

    row: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a proof; ``problems`` is empty when everything adds up."""

    sums: tuple[MeterSums, ...]
    problems: tuple[Problem, ...]


def verify(connection: sqlite3.Connection) -> Verdict:
    """Prove everything that must hold in a ledger; it may be written at the same time.

    Raises:
        sqlite3.Error: The file cannot be read, or is damaged beyond reading.
    """
    connection.execute("BEGIN")  # one snapshot for all sums
    try:
        found = chain(
            _structure(connection),
            _windows(connection),
            _seals(connection),
            _meters(connection),
            _balances(connection),
            _tokens(connection),
        )
        problems = tuple(islice(found, MAX_PROBLEMS))
        sums = tuple(
            MeterSums(
                **dict(zip(("meter", "kind", "name", "windows"), row[:4], strict=True)),
                metered_mj=row[4],
                allocated_mj=row[5],
                idle_mj=row[6],
                quarantine_mj=row[7],
                requests_mj=row[8],
                accounts_mj=row[9],
            )
            for row in connection.execute(_SUMS)
        )
    finally:
        connection.execute("ROLLBACK")
    return Verdict(sums=sums, problems=problems)


def _structure(db: sqlite3.Connection) -> Iterator[Problem]:
    """Look for damaged pages and indexes, and rows that their table's checks refuse."""
    for (text,) in db.execute(f"PRAGMA quick_check({MAX_PROBLEMS})").fetchall():
        if text != "ok":
            yield Problem(row="the file", text=text)


def _windows(db: sqlite3.Connection) -> Iterator[Problem]:
    """Follow each meter's chain: no window is missing, changed or does not add up."""
    names = dict(db.execute("SELECT meter_id, meter FROM meter").fetchall())
    columns = ", ".join(WINDOW_COLUMNS)
    for meter_id, name in names.items():
        number, digest = _chain_begin(db, meter_id)
        rows = db.execute(
            f"SELECT {columns}, digest FROM window WHERE meter_id = ? ORDER BY number",  # noqa: S608
            (meter_id,),
        )
        for *columns_of, found in rows:
            window = dict(zip(WINDOW_COLUMNS, columns_of, strict=True))
            row = f"window {window['number']} of meter {name}"
            number += 1
            if window["number"] != number:
                text = f"follows on window {number - 1}: {window['number'] - number} are missing"
                yield Problem(row=row, text=text)
                number = window["number"]
            elif found != digest_of(digest, tuple(columns_of)):
                yield Problem(row=row, text="was changed after it was booked: its digest differs")
            parts = window["allocated_mj"] + window["idle_mj"] + window["quarantine_mj"]
            if parts != window["metered_mj"]:
                text = f"metered {window['metered_mj']} mJ, its parts add up to {parts} mJ"
                yield Problem(row=row, text=text)
            digest = found
        windows, head = db.execute(
            "SELECT windows, head FROM meter WHERE meter_id = ?", (meter_id,)
        ).fetchone()
        if (windows, head) != (number, digest):
            text = f"has booked {windows} windows, its chain ends with window {number}"
            yield Problem(row=f"meter {name}", text=text)
    for (meter_id,) in db.execute("SELECT DISTINCT meter_id FROM window").fetchall():
        if meter_id not in names:
            yield Problem(row=f"windows of meter {meter_id}", text="are of a meter unknown")


def _chain_begin(db: sqlite3.Connection, meter_id: int) -> tuple[int, bytes]:
    """Return the last window that was folded, and its digest."""
    row = db.execute(
        "SELECT last_number, last_digest FROM meter_hour WHERE meter_id = ?"
        " ORDER BY last_number DESC LIMIT 1",
        (meter_id,),
    ).fetchone()
    return (0, GENESIS) if row is None else (row[0], row[1])


def _seals(db: sqlite3.Connection) -> Iterator[Problem]:
    """Look for rows of sums that were changed by anybody but the ledger."""
    for table, columns in SEALED.items():
        rows = db.execute(f"SELECT {', '.join(columns)}, seal FROM {table}")  # noqa: S608
        for *values, seal in rows:
            if seal_of(*values) != seal:
                row = _name(table, columns[: _KEYS[table]], values)
                yield Problem(row=row, text="was changed after it was booked: its seal differs")


def _meters(db: sqlite3.Connection) -> Iterator[Problem]:
    """Compare what windows metered with how far each counter went."""
    for meter, epoch, counter_mj, last_mj in db.execute(_COUNTERS).fetchall():
        text = f"shows {counter_mj} mJ, its epoch {epoch} ends at {last_mj} mJ"
        yield Problem(row=f"meter {meter}", text=text)
    for meter_id, epoch, first_mj, last_mj, wrapped_mj, metered_mj in db.execute(_EPOCHS):
        text = f"goes from {first_mj} to {last_mj} mJ, {wrapped_mj} wrapped, not {metered_mj} mJ"
        yield Problem(row=_name("epoch", ("meter_id", "epoch"), (meter_id, epoch)), text=text)
    for meter_id, epoch, counted_mj, windows_mj in db.execute(_METERED).fetchall():
        text = f"counted {counted_mj} mJ, its windows metered {windows_mj} mJ"
        yield Problem(row=_name("epoch", ("meter_id", "epoch"), (meter_id, epoch)), text=text)


def _balances(db: sqlite3.Connection) -> Iterator[Problem]:
    """Compare what windows allocated with what somebody bears."""
    for meter_id, hour, allocated_mj, borne_mj in db.execute(_ALLOCATED).fetchall():
        row = f"hour {hour} ({hour * HOUR_S} s unix) of meter_id={meter_id}"
        text = f"windows allocated {allocated_mj} mJ, legs and accounts bear {borne_mj} mJ"
        yield Problem(row=row, text=text)
    lost = db.execute(
        "SELECT request_key, sum(mj) FROM share WHERE request_key NOT IN (SELECT key FROM request)"
        " GROUP BY 1 LIMIT 1"
    ).fetchone()
    if lost is not None:
        row = _name("request", ("key",), lost[:1])
        yield Problem(row=row, text=f"is missing: its legs bear {lost[1]} mJ")


def _tokens(db: sqlite3.Connection) -> Iterator[Problem]:
    """Compare the tokens of requests with the sums of their hours."""
    for hour, place_id, role, *sums in db.execute(_TOKEN_SUMS).fetchall():
        row = _name("token_hour", ("hour", "place_id", "role"), (hour, place_id, role))
        for place, column in enumerate(_TOKENS):
            said, found = sums[2 * place : 2 * place + 2]
            if said != found:
                yield Problem(row=row, text=f"has {said} {column}, its requests {found}")


def _name(table: str, columns: Sequence[str], values: Sequence[object]) -> str:
    pairs = zip(columns, values, strict=False)
    return f"{table} row " + " ".join(f"{column}={value}" for column, value in pairs)
