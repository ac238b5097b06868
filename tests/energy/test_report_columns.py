import csv
import io
import json

import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.report import By, make_report
from nodeserve.energy.report_basis import basis_of
from nodeserve.energy.report_columns import (
    ENERGY_FIELDS,
    USAGE_FIELDS,
    number,
    to_csv,
    to_json,
    to_rows,
)
from nodeserve.energy.utc import HOUR_S
from tests.support.energy_rows import TEN, a_meter, an_energy, some_factors, some_tokens

UNTIL = TEN + HOUR_S
ROWS = LedgerRows(
    energy=[an_energy(3_000, 500), an_energy(1_500, role="prefill")],
    meters=[a_meter(6_000, 700, 40)],
    tokens=[some_tokens(output=10, scrap_tokens=1), some_tokens(prompt=30, role="prefill")],
)
UNMETERED = LedgerRows(energy=[], meters=[], tokens=ROWS.tokens)


def made(rows=ROWS, by=By.LISTENER, **settings):
    factors = some_factors(**settings)
    report = make_report(rows, by, factors, until_unix_s=UNTIL)
    basis = basis_of(report, rows, factors, period=(0, UNTIL), factors_name="f.toml")
    return report, basis


def in_csv(fields=ENERGY_FIELDS, **settings):
    report, basis = made(**settings)
    return list(csv.DictReader(io.StringIO(to_csv(report, fields, basis))))


def in_json(fields=ENERGY_FIELDS, **settings):
    report, basis = made(**settings)
    return json.loads(to_json(report, fields, basis))


def in_table(fields=ENERGY_FIELDS, **settings):
    headings, rows = to_rows(made(**settings)[0], fields)
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_all_formats_say_the_same():
    table, document, sheet = in_table(), in_json(), in_csv()
    names = ["api", "#quarantine", "#unattributed"]
    assert [row["NAME"] for row in table] == [*names, "total"]
    assert [line["name"] for line in document["lines"]] == names
    assert [row["listener"] for row in sheet] == names
    assert document["total"]["metered_mj"] == 6_740
    assert sum(int(row["metered_mj"]) for row in sheet) == 6_740
    assert (table[0]["TOKENS"], table[0]["J"], table[0]["SCRAP J"]) == ("40", "5.70", "0.5")
    assert float(sheet[0]["j_per_token"]) == document["lines"][0]["j_per_token"] == 0.125


def test_json_has_the_basis_of_every_figure():
    document = in_json()
    assert (document["by"], document["seconds"]) == ("listener", 3_600.0)
    assert document["basis"]["boundary"] == "gpu"
    assert document["basis"]["intensity"][0]["source"] == "Ember Yearly Electricity Data"
    line = document["lines"][0]
    assert (line["carbon_kind"], line["carbon_tier"], line["carbon_estimated"]) == (
        "average",
        "year",
        True,
    )
    assert line["carbon_source"] == "Ember Yearly Electricity Data 2025"


def test_every_line_of_csv_says_what_it_rests_on():
    for row in in_csv():
        assert (row["boundary"], row["method"]) == ("gpu", "roofline-window/1")
        assert row["pue"] == "DEU: 1.2 (site, 2025)"
    assert in_csv()[0]["energy_estimated"] == "false"


def test_unknown_is_written_as_unknown_and_never_as_zero():
    (row, _) = in_table(rows=UNMETERED)
    assert {row[name] for name in ("J", "IDLE J", "J/TOKEN", "gCO2e", "SCI g/1M")} == {"unknown"}
    (row,) = in_csv(rows=UNMETERED, prices=None)
    unknown = ("metered_mj", "j_per_token", "gco2e", "carbon_source", "cost", "electricity_cost")
    assert {row[name] for name in unknown} == {"unknown"}
    (line,) = in_json(rows=UNMETERED, prices=None)["lines"]
    assert {line[name] for name in unknown} == {None}
    assert line["tokens"] == 40


def test_what_has_no_meaning_is_no_unknown():
    by_gpu = in_table(by=By.GPU)[0]
    assert {by_gpu[name] for name in ("TOKENS", "TOKENS/S", "J/TOKEN", "COST/1M")} == {"-"}
    by_role = {row["NAME"]: row for row in in_table(by=By.ROLE)}
    assert (by_role["decode"]["PREFILL"], by_role["decode"]["DECODE"]) == ("-", "0.3")
    assert by_role["prefill"]["PREFILL"] == "0.05"
    quarantine = in_csv()[1]
    assert (quarantine["gco2e"], quarantine["j_per_token"]) == ("", "")


def test_usage_is_tokens_and_their_cost():
    row = in_table(USAGE_FIELDS)[0]
    assert list(row) == [field.heading for field in USAGE_FIELDS]
    assert (row["REQUESTS"], row["PROMPT"], row["OUTPUT"], row["SCRAP"]) == ("2", "30", "10", "1")
    assert (row["COST"], row["COST/1M"]) == ("1e-05", "0.25")  # 10.5 millionths, half to even


def test_no_two_columns_have_one_key():
    for fields in (ENERGY_FIELDS, USAGE_FIELDS):
        keys = [field.key for field in fields]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (123456.7, "123457"),
        (99.994, "99.99"),
        (1, "1.00"),
        (0.12345, "0.123"),
        (0.00001234, "1.23e-05"),
        (-3.14159, "-3.14"),
    ],
)
def test_numbers_have_the_digits_that_count(value, text):
    assert number(value) == text
