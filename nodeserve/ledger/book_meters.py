"""Book what meters have counted: their new values, windows, and the chain of these."""

import sqlite3
from collections.abc import Mapping

from nodeserve.energy.meter import LastReading
from nodeserve.energy.settle import Settled
from nodeserve.energy.window import Opened
from nodeserve.errors import InvariantError
from nodeserve.ledger.schema import GENESIS, digest_of
from nodeserve.wire.accounting import Meter


class MeterBook:
    """The meters of one ledger. All of it happens within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._ids: dict[str, int] = {}

    def forget(self) -> None:
        """Forget what was looked up: the transaction that it was in is no more."""
        self._ids.clear()

    def known(self) -> dict[str, LastReading]:
        """Return what each meter said last."""
        rows = self._db.execute("SELECT meter, counter_mj, epoch, at_unix_ms FROM meter")
        return {
            meter: LastReading(
                counter_mj=counter_mj, epoch=epoch, at_s=None, at_unix_s=at_unix_ms / 1000
            )
            for meter, counter_mj, epoch, at_unix_ms in rows
        }

    def meter_id(self, meter: str) -> int:
        """Return the number of a meter that has been opened."""
        found = self._ids.get(meter)
        if found is None:
            row = self._db.execute("SELECT meter_id FROM meter WHERE meter = ?", (meter,))
            found = self._ids[meter] = int(row.fetchone()[0])
        return found

    def open(self, opened: Opened) -> None:
        """Book a meter's first reading."""
        meter, reading = opened.meter, opened.reading
        at_unix_ms = round(reading.at_unix_s * 1000)
        found = self._db.execute(
            "INSERT INTO meter VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 0, ?) RETURNING meter_id",
            (
                *(meter.meter, meter.kind, meter.name, meter.source),
                *(reading.epoch, reading.counter_mj, at_unix_ms, GENESIS),
            ),
        ).fetchone()
        first = (found[0], reading.epoch, reading.counter_mj, reading.counter_mj)
        self._db.execute("INSERT INTO epoch VALUES (?, ?, ?, ?, 0, 0)", first)

    def describe(self, meters: Mapping[str, Meter]) -> None:
        """Note what is said of meters now."""
        self._db.executemany(
            "UPDATE meter SET kind = ?1, name = ?2, source = ?3 WHERE meter = ?4"
            " AND (kind <> ?1 OR name <> ?2 OR source <> ?3)",
            [(m.kind, m.name, m.source, m.meter) for m in meters.values()],
        )

    def settle(self, settled: Settled) -> int:
        """Book a window and its meter's new value, and return the meter's number.

        Raises:
            InvariantError: The window does not follow on what its meter said last.
        """
        window = settled.window
        meter_id = self.meter_id(window.meter)
        epoch, counter_mj, windows, head = self._db.execute(
            "SELECT epoch, counter_mj, windows, head FROM meter WHERE meter_id = ?", (meter_id,)
        ).fetchone()
        is_new = window.epoch == epoch + 1
        if not is_new:
            expected_mj = counter_mj + window.metered_mj - window.wrapped_mj
            if window.epoch != epoch or expected_mj != window.counter_mj:
                text = f"ledger: {window} does not follow on {counter_mj} mJ of epoch {epoch}"
                raise InvariantError(f"{text}; report this bug")
        end_unix_ms = round(window.end_unix_s * 1000)
        columns = (
            *(meter_id, windows + 1, window.epoch, round(window.begin_unix_s * 1000)),
            *(end_unix_ms, round(window.span_s * 1000), window.hour),
            *(window.metered_mj, settled.allocated_mj, settled.idle_mj, settled.quarantine_mj),
            *(window.cause, int(window.is_estimate), int(settled.is_idle_known)),
        )
        digest = digest_of(head, columns)
        marks = ", ".join("?" * (len(columns) + 1))
        self._db.execute(f"INSERT INTO window VALUES ({marks})", (*columns, digest))  # noqa: S608
        self._db.execute(
            "UPDATE meter SET epoch = ?, counter_mj = ?, at_unix_ms = ?, windows = ?, head = ?"
            " WHERE meter_id = ?",
            (window.epoch, window.counter_mj, end_unix_ms, windows + 1, digest, meter_id),
        )
        if is_new:
            first_mj = window.counter_mj - window.metered_mj
            self._db.execute(
                "INSERT INTO epoch VALUES (?, ?, ?, ?, 0, ?)",
                (meter_id, window.epoch, first_mj, window.counter_mj, window.metered_mj),
            )
        else:
            self._db.execute(
                "UPDATE epoch SET last_mj = ?, wrapped_mj = wrapped_mj + ?,"
                " metered_mj = metered_mj + ? WHERE meter_id = ? AND epoch = ?",
                (
                    *(window.counter_mj, window.wrapped_mj, window.metered_mj),
                    *(meter_id, window.epoch),
                ),
            )
        return meter_id
