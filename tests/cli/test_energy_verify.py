"""``nodeserve energy verify``."""

import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from nodeserve.cli.main import cli
from tests.ledger.books import Books


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path)
    made.book(opened=[made.opened()])
    for _ in range(3):
        made.book(made.settled({"d9-1.1": 300}, idle_mj=70, unattributed_mj=5))
    made.store.close()
    return made


def verify(path):
    return CliRunner().invoke(cli, ["energy", "verify", "--db", str(path)])


def test_a_ledger_that_adds_up_is_shown_in_a_table(books):
    done = verify(books.path)
    assert done.exit_code == 0, done.output
    assert "everything adds up" in done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("GPU-0")]
    assert line.split() == ["GPU-0", "gpu", "3", "1125", "915", "210", "0", "900", "15"]


def test_a_flipped_row_is_named_and_ends_it_with_1(books):
    with closing(sqlite3.connect(books.path)) as connection:
        connection.execute("UPDATE share SET mj = mj + 1")
        connection.commit()
    done = verify(books.path)
    assert done.exit_code == 1
    assert "share row request_key=1 leg=1 hour=472222 meter_id=1 role=2: was changed" in done.stderr
    assert "2 rows do not hold" in done.output


def test_a_damaged_page_ends_it_with_1(books):
    num_bytes = books.path.stat().st_size
    with books.path.open("r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * (num_bytes - 4096 * 5))
    assert verify(books.path).exit_code == 1


def test_a_ledger_that_is_not_there_is_another_error(tmp_path):
    done = verify(tmp_path / "no.db")
    assert done.exit_code == 78
    assert "is not there" in done.stderr


def test_an_empty_ledger_adds_up(tmp_path):
    Books(tmp_path).store.close()
    done = verify(tmp_path / "ledger.db")
    assert (done.exit_code, "nothing is metered" in done.output) == (0, True)
