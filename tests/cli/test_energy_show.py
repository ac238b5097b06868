"""``nodeserve energy show``."""

import json

import pytest
from click.testing import CliRunner

from nodeserve.cli.main import cli
from tests.ledger.books import Books, ended, leg, started


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path)
    made.book(opened=[made.opened(0), made.opened(1)])
    made.book(
        made.settled({("d9-1.1", "prefill"): 1500}, index=0),
        made.settled({"d9-1.2": 4500}, index=1),
        notes=[made.noted(started=[started(1), started(2)])],
    )
    yield made
    made.store.close()


def end(books):
    legs = (leg("d9-1.1", role="prefill"), leg("d9-1.2"))
    books.book(notes=[books.noted(ended=[ended(1, legs=legs)])], until_s=50.0)


def show(books, *words):
    return CliRunner().invoke(cli, ["energy", "show", *words, "--db", str(books.path)])


def test_a_request_that_runs_has_provisional_figures(books):
    done = show(books, "cmpl-1")
    assert done.exit_code == 0, done.output
    assert "cmpl-1: 6.000 J above idle (provisional" in done.output
    assert "running" in done.output


def test_a_settled_one_has_joules_by_role_meter_and_token(books):
    end(books)
    done = show(books, "cmpl-1")
    assert "6.000 J above idle, 0.300 J per output token (settled)" in done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("d9-1")]
    assert line.split()[7:] == ["1.500", "4.500", "0.000", "0.000", "settled"]
    assert [line.split() for line in done.output.splitlines()[-2:]] == [
        ["GPU-0", "1.500"],
        ["GPU-1", "4.500"],
    ]


def test_json_has_millijoules(books):
    end(books)
    shown = json.loads(show(books, "cmpl-1", "--json").output)
    assert (shown["settled"], shown["total_mj"], shown["total_j"]) == (True, 6000, 6.0)
    assert (shown["prefill_mj"], shown["decode_mj"], shown["scrap_mj"]) == (1500, 4500, 0)
    (request,) = shown["requests"]
    assert request["meters"] == {"GPU-0": 1500, "GPU-1": 4500}
    assert (request["output_tokens"], request["outcome"]) == (20, "stop")


def test_what_was_not_metered_is_unknown_and_not_zero(books):
    done = show(books, "cmpl-2")
    assert "cmpl-2: energy unknown" in done.output
    assert json.loads(show(books, "cmpl-2", "--json").output)["total_mj"] is None


def test_a_gap_is_said(books):
    end(books)
    books.book(books.settled({}, quarantine_mj=9, cause="#reset", epoch=2, counter_mj=9))
    books.book(books.settled({"d9-1.2": 1}, epoch=2))
    assert (
        "may be too low: energy of its time is in quarantine (#reset)"
        in show(books, "cmpl-1").output
    )


def test_an_unknown_response_says_when_it_would_be_known(books):
    done = show(books, "cmpl-9")
    assert done.exit_code == 65
    assert "knows no response cmpl-9" in done.stderr
