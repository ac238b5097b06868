"""Open a ledger's file: to write it, as its one writer, or to read it."""

import fcntl
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from nodeserve.errors import CapacityError, ConfigError, NodeserveError, PeerError
from nodeserve.ledger.schema import APPLICATION_ID, TABLES, VERSION, seal_of

WAL_BYTES: Final = 64 << 20
"""Size to which the write-ahead log is cut back."""

READ_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose ledger it is: what reports of several nodes tell them apart by."""

    name: str
    zone: str


class Lock:
    """Keeps a second process from writing the same ledger, until ``close`` or our death."""

    def __init__(self, path: Path) -> None:
        """Lock the ledger at ``path``.

        Raises:
            PeerError: Another process has it.
            ConfigError: The lock's file cannot be made.
        """
        lock = path.with_name(path.name + ".lock")
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            text = f"ledger {path}: cannot be written: {error.strerror}; see its directory"
            raise ConfigError(text) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            text = f"ledger {path}: another node writes it; give each node a state directory"
            raise PeerError(text) from error

    def close(self) -> None:
        """Let another process write."""
        os.close(self._fd)


def open_to_write(path: Path, identity: Identity, *, now_unix_ms: int) -> sqlite3.Connection:
    """Open the ledger at ``path``, or make it; hold its Lock before.

    Every commit is on disk when it returns. The connection begins no transaction by itself.

    Raises:
        ConfigError: It is no ledger, or one of a later release.
        CapacityError: It cannot be read or written at present.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise failure(path, error) from error
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        version = _version(connection, path)
        if version == 0:
            _make(connection, identity, now_unix_ms)
        connection.execute("UPDATE node SET name = ?, zone = ?", (identity.name, identity.zone))
    except (sqlite3.Error, OSError) as error:
        connection.close()
        raise failure(path, error) from error
    except NodeserveError:
        connection.close()
        raise
    connection.create_function("seal_of", -1, seal_of, deterministic=True)
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open the ledger at ``path`` without writing to it, whether or not a node does.

    Raises:
        ConfigError: There is none, or it is none.
        CapacityError: It cannot be read at present.
    """
    if not path.exists():
        text = f"ledger {path}: is not there; name one with --db, or see whether the node keeps one"
        raise ConfigError(text)
    where = path.absolute().as_uri()
    try:
        connection = _readable(f"{where}?mode=ro")
    except sqlite3.Error:
        # Nobody writes it, and its directory is not ours to put a write-ahead log in.
        try:
            connection = _readable(f"{where}?mode=ro&immutable=1")
        except sqlite3.Error as error:
            raise failure(path, error) from error
    try:
        if _version(connection, path) == 0:
            raise ConfigError(f"ledger {path}: is no ledger of nodeserve; name another with --db")
    except sqlite3.Error as error:
        connection.close()
        raise failure(path, error) from error
    except NodeserveError:
        connection.close()
        raise
    connection.create_function("seal_of", -1, seal_of, deterministic=True)
    return connection


def failure(path: Path, error: Exception) -> NodeserveError:
    """Return what to tell of an error of the ledger's file."""
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return ConfigError(f"ledger {path}: is no ledger of nodeserve; move it away")
    return CapacityError(
        f"ledger {path}: cannot be used: {error}; see the disk's room and health, and who owns it"
    )


def _readable(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=READ_WAIT_S)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the ledger's version, 0 for an empty file; refuses what is no such ledger."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"ledger {path}: is a database of something else; move it away")
    if version > VERSION:
        raise ConfigError(
            f"ledger {path}: is of version {version}, this release knows {VERSION}; use a later "
            "release, or move it away"
        )
    return int(version)


def _make(connection: sqlite3.Connection, identity: Identity, now_unix_ms: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with closing(connection.cursor()) as cursor:
        for statement in TABLES.split(";"):
            cursor.execute(statement)
        row = (uuid4().hex, identity.name, identity.zone, now_unix_ms)
        cursor.execute("INSERT INTO node VALUES (1, ?, ?, ?, ?)", row)
        cursor.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        cursor.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
