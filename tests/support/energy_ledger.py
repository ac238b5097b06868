"""A ledger's file with rows of a made-up node, for commands that read one."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from nodeserve.energy.utc import HOUR_S
from nodeserve.ledger.database import Identity, open_to_write
from nodeserve.ledger.schema import GENESIS, ROLES
from tests.support.energy_rows import TEN

BEFORE_MS = (TEN - 100 * HOUR_S) * 1_000


def write_ledger(path: Path, rows: LedgerRows, node: str = "n1", zone: str = "DEU") -> Path:
    """Write rows of one node; what is not in the reader's sight stays at its zero."""
    with closing(open_to_write(path, Identity(name=node, zone=zone), now_unix_ms=BEFORE_MS)) as db:
        meter_ids = _meters(db, rows.meters)
        places: dict[tuple[str, str], int] = {}
        for row in rows.energy:
            _energy(db, row, meter_ids[row.meter], places)
        for tokens in rows.tokens:
            _tokens(db, tokens, places)
    return path


def _meters(db, rows: Iterable[MeterRow]) -> dict[str, int]:
    ids: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.hour_unix_s):
        begin_ms = row.hour_unix_s * 1_000
        end_ms = begin_ms + round(row.metered_s * 1_000)
        if row.meter not in ids:
            meter = (row.meter, row.kind, row.name, "nvml-counter", end_ms, GENESIS)
            sql = "INSERT INTO meter VALUES (NULL, ?, ?, ?, ?, 1, 0, ?, 0, ?) RETURNING meter_id"
            ids[row.meter] = db.execute(sql, meter).fetchone()[0]
        meter_id, number = ids[row.meter], numbers.get(row.meter, 0) + 1
        numbers[row.meter] = number
        estimate = int(row.estimated_mj > 0)
        values = (
            *(meter_id, number, 1, begin_ms, end_ms, end_ms - begin_ms, row.hour_unix_s // HOUR_S),
            *(row.metered_mj, row.allocated_mj, row.idle_mj, row.quarantine_mj, None),
            *(estimate, 1, GENESIS),
        )
        db.execute(f"INSERT INTO window VALUES ({', '.join('?' * len(values))})", values)
        db.execute("UPDATE meter SET at_unix_ms = ? WHERE meter_id = ?", (end_ms, meter_id))
    return ids


def _energy(db, row: EnergyRow, meter_id: int, places: dict[tuple[str, str], int]) -> None:
    hour = row.hour_unix_s // HOUR_S
    if row.listener.startswith("#"):
        account = (row.listener, hour, meter_id, row.useful_mj)
        db.execute("INSERT INTO account VALUES (?, ?, ?, ?, 0)", account)
        return
    place, role = _place(db, row, places), ROLES.index(row.role)
    for is_scrap, mj in ((0, row.useful_mj), (1, row.scrap_mj)):
        values = (hour, meter_id, place, role, is_scrap, mj)
        db.execute("INSERT INTO settled_hour VALUES (?, ?, ?, ?, ?, ?, 0)", values)


def _tokens(db, row: TokenRow, places: dict[tuple[str, str], int]) -> None:
    values = (
        *(row.hour_unix_s // HOUR_S, _place(db, row, places), ROLES.index(row.role), row.requests),
        *(row.prompt_tokens, row.cached_tokens, row.output_tokens, row.scrap_tokens),
    )
    db.execute("INSERT INTO token_hour VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", values)


def _place(db, row: EnergyRow | TokenRow, places: dict[tuple[str, str], int]) -> int:
    key = (row.listener, row.model)
    if key not in places:
        sql = "INSERT INTO place VALUES (NULL, ?, ?) RETURNING place_id"
        places[key] = db.execute(sql, key).fetchone()[0]
    return places[key]
