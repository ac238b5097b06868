import csv
import io
import json

import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.report import By
from nodeserve.energy.utc import HOUR_S
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import TEN, a_meter, an_energy, some_tokens

LATER = {"hour_unix_s": TEN + HOUR_S}
ROWS = LedgerRows(
    energy=[
        an_energy(6_000, 500),
        an_energy(2_500, listener="batch", role="prefill", meter="GPU-2"),
        an_energy(1_000, **LATER),
    ],
    meters=[a_meter(6_500, 100), a_meter(2_500, 30, meter="GPU-2"), a_meter(1_000, 1, **LATER)],
    tokens=[
        some_tokens(0, 50),
        some_tokens(70, 0, listener="batch", role="prefill"),
        some_tokens(0, 5, **LATER),
    ],
)
TOTAL_MJ = 6_600 + 2_530 + 1_001


@pytest.fixture
def ledger(tmp_path):
    return write_ledger(tmp_path / "ledger.db", ROWS)


@pytest.mark.parametrize("by", list(By))
def test_every_grouping_adds_up_to_the_same_total(run, ledger, by):
    result = run("energy", "report", "--db", ledger, "--by", by, "--format", "json")
    found = json.loads(result.output)
    assert found["by"] == by
    assert found["total"]["metered_mj"] == TOTAL_MJ
    assert sum(line["metered_mj"] for line in found["lines"]) == TOTAL_MJ
    assert found["total"]["gco2e"] == pytest.approx(sum(line["gco2e"] for line in found["lines"]))


def test_the_table_says_what_it_rests_on(run, ledger):
    shown = run("energy", "report", "--db", ledger).output
    assert shown.splitlines()[0].split()[:3] == ["LISTENER", "TOKENS", "TOKENS/S"]
    for said in (
        "boundary  gpu",
        "method    roofline-window/1",
        "zones: DEU",
        "pue       DEU: 1 (not supplied)",
        "Ember Yearly Electricity Data, 2025, CC BY 4.0",
        "prices    not supplied",
        "factors   those that are shipped",
    ):
        assert said in shown


def test_csv_has_a_row_for_each_line(run, ledger):
    shown = run("energy", "report", "--db", ledger, "--by", "hour", "--format", "csv").output
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert [row["hour"] for row in rows] == ["2026-03-10T10:00Z", "2026-03-10T11:00Z"]
    assert [row["metered_mj"] for row in rows] == ["9130", "1001"]


def test_only_the_hours_that_are_asked_for_are_reported(run, ledger):
    words = ("energy", "report", "--db", ledger, "--format", "json", "--by", "hour")
    late = json.loads(run(*words, "--since", "2026-03-10T11:15").output)
    early = json.loads(run(*words, "--until", "2026-03-10T11:15").output)
    assert [line["name"] for line in late["lines"]] == ["2026-03-10T11:00Z"]
    assert [line["name"] for line in early["lines"]] == ["2026-03-10T10:00Z"]


def test_factors_are_of_the_file_that_is_named_or_beside_the_ledger(run, ledger, tmp_path):
    text = '[[site]]\npue = 1.5\nsource = "a site"\n'
    (tmp_path / "factors.toml").write_text(text)
    shown = run("energy", "report", "--db", ledger).output
    assert "pue       DEU: 1.5 (a site)" in shown
    (tmp_path / "mine.toml").write_text(text.replace("1.5", "1.25"))
    shown = run("energy", "report", "--db", ledger, "--factors", tmp_path / "mine.toml").output
    assert "pue       DEU: 1.25 (a site)" in shown


def test_a_ledger_without_meters_reports_unknown_energy(run, tmp_path):
    rows = LedgerRows(energy=[], meters=[], tokens=[some_tokens(3, 4)])
    path = write_ledger(tmp_path / "ledger.db", rows)
    shown = run("energy", "report", "--db", path).output
    assert "nothing was metered: energy is unknown" in shown
    assert shown.splitlines()[1].split() == [
        *("api", "7", "0.00194", "unknown", "unknown", "unknown", "unknown", "-", "unknown"),
        *("unknown", "unknown", "unknown", "unknown", "unknown"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--db", "none.db"], 78, "ledger none.db: is not there; name one with --db"),
        (["--since", "tomorrow"], 78, "--since: 'tomorrow' is no UTC time"),
        (["--factors", "none.toml"], 78, "none.toml: cannot be read"),
        (["--by", "colour"], 2, "'colour' is not one of"),
    ],
)
def test_what_cannot_be_reported_is_refused(run, ledger, words, code, said):
    result = run("energy", "report", "--db", ledger, *words)
    assert result.exit_code == code
    assert said in result.stderr
