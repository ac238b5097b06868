"""The ledger's one writer: a booking is on disk as a whole, or not at all."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nodeserve.energy.meter import LastReading
from nodeserve.energy.window import Round
from nodeserve.errors import InvariantError
from nodeserve.ledger.book_meters import MeterBook
from nodeserve.ledger.book_requests import RequestBook
from nodeserve.ledger.database import Identity, failure, open_to_write
from nodeserve.ledger.retention import Retention, fold
from nodeserve.wire.accounting import RequestsNoted

_USED: Final = """
SELECT hour, sum(mj) FROM (
    SELECT s.hour, s.mj FROM place p JOIN request r USING (place_id)
        JOIN share s ON s.request_key = r.key
        WHERE p.listener = :listener AND s.hour >= :hour
    UNION ALL SELECT h.hour, h.mj FROM place p JOIN settled_hour h USING (place_id)
        WHERE p.listener = :listener AND h.hour >= :hour
) GROUP BY hour
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What goes into one transaction.

    ``seqs`` are the last messages of each generation of which nothing is left to be booked after
    it. What ended before ``settled_until_unix_s`` is settled by it.
    """

    round: Round | None = None
    notes: tuple[RequestsNoted, ...] = ()
    seqs: Mapping[int, int] = field(default_factory=dict)
    settled_until_unix_s: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to book."""
        return self.round is None and not self.notes and not self.seqs


class Store:
    """One ledger, open to be written. Not for more than one thread at a time."""

    def __init__(self, path: Path, identity: Identity, run_id: str, *, now_unix_s: float) -> None:
        """Open or make the ledger at ``path``; the caller holds its lock.

        Raises:
            ConfigError: It is no ledger, or one of a later release.
            CapacityError: It cannot be written at present.
        """
        self._path = path
        self._db = open_to_write(path, identity, now_unix_ms=round(now_unix_s * 1000))
        self._meters = MeterBook(self._db)
        self._requests = RequestBook(self._db, run_id)

    def known(self) -> dict[str, LastReading]:
        """Return what each meter said last, of which all is booked.

        Raises:
            CapacityError: The disk fails.
        """
        try:
            return self._meters.known()
        except sqlite3.Error as error:
            raise failure(self._path, error) from error

    def seqs(self) -> dict[int, int]:
        """Return up to which message each generation of this run is booked.

        Raises:
            CapacityError: The disk fails.
        """
        try:
            rows = self._db.execute(
                "SELECT generation, seq FROM sender JOIN run USING (run_key) WHERE run_key = ?",
                (self._requests.run_key,),
            )
            return dict(rows.fetchall())
        except sqlite3.Error as error:
            raise failure(self._path, error) from error

    def used_by_hour(self, listener: str, first_hour: int) -> dict[int, int]:
        """Return what a listener's requests have used by hour, from an hour on; in mJ.

        Raises:
            CapacityError: The disk fails.
        """
        try:
            rows = self._db.execute(_USED, {"listener": listener, "hour": first_hour})
            return dict(rows.fetchall())
        except sqlite3.Error as error:
            raise failure(self._path, error) from error

    def book(self, booking: Booking) -> None:
        """Book all of it in one transaction; when this returns it is on disk.

        Raises:
            CapacityError: The disk fails or is full; nothing of it is booked.
            InvariantError: A bug; nothing of it is booked.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._book(booking)
            self._db.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            self._undo()
            text = f"ledger {self._path}: {error} in {booking}; report this bug"
            raise InvariantError(text) from error
        except sqlite3.Error as error:
            self._undo()
            raise failure(self._path, error) from error
        except BaseException:
            self._undo()
            raise

    def keep(self, retention: Retention, *, now_unix_s: float) -> bool:
        """Fold some of what is older than it is to be kept, and return whether more is left.

        Raises:
            CapacityError: The disk fails or is full; nothing has changed.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            more = fold(self._db, retention, now_unix_s=now_unix_s)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            raise failure(self._path, error) from error
        self._requests.forget()  # some of them are gone
        return more

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _book(self, booking: Booking) -> None:
        for noted in booking.notes:
            self._requests.note(noted)
        done = booking.round
        if done is not None:
            for opened in done.opened:
                self._meters.open(opened)
            self._meters.describe(done.meters)
            for settled in done.settled:
                meter_id = self._meters.settle(settled)
                self._requests.add_shares(settled, meter_id)
        if booking.settled_until_unix_s is not None:
            self._requests.settle_until(booking.settled_until_unix_s)
        run_key = self._requests.run_key
        self._db.executemany(
            "INSERT INTO sender VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET seq = max(seq, excluded.seq)",
            [(run_key, generation, seq) for generation, seq in booking.seqs.items()],
        )

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._meters.forget()
        self._requests.forget()
