import csv
import io
import json

from nodeserve.energy.ledger_rows import LedgerRows
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import a_meter, some_tokens

ROWS = LedgerRows(
    energy=[],
    meters=[a_meter(0, 1)],
    tokens=[
        some_tokens(1_000_000, cached_tokens=400_000, role="prefill", requests=0),
        some_tokens(output=500_000, requests=9, scrap_tokens=3),
        some_tokens(output=36_000, listener="batch"),
    ],
)
PRICES = 'currency = "EUR"\n[[price]]\nprompt = 0.15\ncached = 0.07\noutput = 0.6\n'


def test_tokens_and_what_they_cost_by_listener(run, tmp_path):
    path = write_ledger(tmp_path / "ledger.db", ROWS)
    (tmp_path / "factors.toml").write_text(PRICES)
    lines = run("usage", "--db", path).output.splitlines()
    assert lines[0].split() == [
        *("LISTENER", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "SCRAP", "TOKENS/S", "COST"),
        "COST/1M",
    ]
    assert lines[1].split() == [
        *("api", "9", "1000000", "400000", "500000", "3", "417", "0.418", "0.279"),
    ]
    assert lines[2].split()[6:] == ["10.00", "0.0216", "0.6"]
    assert lines[3].split()[:2] == ["total", "10"]
    assert "prices    EUR, 1 for tokens; electricity not supplied" in lines


def test_without_prices_the_cost_is_unknown(run, tmp_path):
    path = write_ledger(tmp_path / "ledger.db", ROWS)
    row = run("usage", "--db", path, "--by", "model").output.splitlines()[1].split()
    assert (row[0], row[-2:]) == ("llama", ["unknown", "unknown"])


def test_programs_get_json_and_csv(run, tmp_path):
    path = write_ledger(tmp_path / "ledger.db", ROWS)
    words = ("usage", "--db", path, "--by", "role")
    found = json.loads(run(*words, "--format", "json").output)
    assert [(line["name"], line["output_tokens"]) for line in found["lines"]] == [
        ("decode", 536_000),
        ("prefill", 0),
    ]
    assert found["total"]["cost"] is None
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv").output)))
    assert (rows[1]["role"], rows[1]["cached_tokens"], rows[1]["cost"]) == (
        "prefill",
        "400000",
        "unknown",
    )


def test_tokens_cannot_be_told_apart_by_gpu(run):
    assert run("usage", "--by", "gpu").exit_code == 2
