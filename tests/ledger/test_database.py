"""Opening a ledger: one writer, any readers, and nothing that is none."""

import sqlite3
from contextlib import closing

import pytest

from nodeserve.errors import CapacityError, ConfigError, PeerError
from nodeserve.ledger.database import Lock, failure, open_to_read, open_to_write
from nodeserve.ledger.schema import VERSION
from tests.ledger.books import IDENTITY


def made(path):
    open_to_write(path, IDENTITY, now_unix_ms=1000).close()
    return path


def test_it_is_made_once_with_an_identity_that_stays(tmp_path):
    path = made(tmp_path / "ledger.db")
    with closing(open_to_read(path)) as connection:
        before = connection.execute("SELECT * FROM node").fetchall()
    made(path)
    with closing(open_to_read(path)) as connection:
        assert connection.execute("SELECT * FROM node").fetchall() == before
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_commit_is_flushed(tmp_path):
    path = tmp_path / "ledger.db"
    with closing(open_to_write(path, IDENTITY, now_unix_ms=1)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_who_reads_cannot_write(tmp_path):
    path = made(tmp_path / "ledger.db")
    with closing(open_to_read(path)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM node")


def test_it_can_be_read_while_it_is_written(tmp_path):
    path = tmp_path / "ledger.db"
    with closing(open_to_write(path, IDENTITY, now_unix_ms=1)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE node SET name = 'other'")
        with closing(open_to_read(path)) as reader:
            assert reader.execute("SELECT name FROM node").fetchone() == ("here",)
        writer.execute("COMMIT")


def test_a_copy_in_a_directory_that_cannot_be_written_can_be_read(tmp_path):
    path = made(tmp_path / "ledger.db")
    tmp_path.chmod(0o500)
    try:
        with closing(open_to_read(path)) as connection:
            assert connection.execute("SELECT name FROM node").fetchone() == ("here",)
    finally:
        tmp_path.chmod(0o700)


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("not a database\n" * 100)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    before = text.read_bytes(), other.read_bytes()
    for path in (text, other):
        with pytest.raises(ConfigError, match="move it away"):
            open_to_write(path, IDENTITY, now_unix_ms=1)
        with pytest.raises(ConfigError):
            open_to_read(path)
    assert other.read_bytes()[:16] == before[1][:16]
    assert text.read_bytes() == before[0]
    with pytest.raises(ConfigError, match="is not there"):
        open_to_read(tmp_path / "nothing")


def test_an_empty_file_is_no_ledger_to_read(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="is no ledger"):
        open_to_read(tmp_path / "empty")


def test_a_later_releases_ledger_is_refused(tmp_path):
    path = made(tmp_path / "ledger.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(ConfigError, match=f"is of version {VERSION + 1}"):
        open_to_write(path, IDENTITY, now_unix_ms=1)


def test_one_process_at_a_time_writes(tmp_path):
    lock = Lock(tmp_path / "ledger.db")
    with pytest.raises(PeerError, match="another node writes it"):
        Lock(tmp_path / "ledger.db")
    lock.close()
    Lock(tmp_path / "ledger.db").close()
    with pytest.raises(ConfigError, match="cannot be written"):
        Lock(tmp_path / "nowhere" / "ledger.db")


def test_a_full_disk_is_a_lack_of_room(tmp_path):
    error = failure(tmp_path / "l", sqlite3.OperationalError("database or disk is full"))
    assert isinstance(error, CapacityError)
    assert "disk is full" in str(error)
