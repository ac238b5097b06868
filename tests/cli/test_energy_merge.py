import json
import shutil

from nodeserve.energy.ledger_rows import LedgerRows
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import a_meter, an_energy, some_tokens


def write(tmp_path, name, node, zone, meter, mj):
    rows = LedgerRows(
        energy=[an_energy(mj, meter=meter)],
        meters=[a_meter(mj, 10, meter=meter)],
        tokens=[some_tokens(5, 5)],
    )
    return write_ledger(tmp_path / name, rows, node=node, zone=zone)


def test_ledgers_of_several_nodes_and_regions_are_one_report(run, tmp_path):
    one = write(tmp_path, "a.db", "n1", "DEU", "GPU-1", 1_000)
    two = write(tmp_path, "b.db", "n2", "FRA", "GPU-2", 500)
    shown = run("energy", "merge", one, two, "--by", "zone", "--format", "json").output
    found = json.loads(shown)
    assert {line["name"]: line["metered_mj"] for line in found["lines"]} == {
        "DEU": 1_010,
        "FRA": 510,
    }
    assert (found["total"]["metered_mj"], found["total"]["tokens"]) == (1_520, 20)
    assert {use["factor_zone"] for use in found["basis"]["intensity"]} == {"DEU", "FRA"}
    assert found["basis"]["nodes"] == ["n1", "n2"]


def test_a_ledger_twice_is_refused_by_name(run, tmp_path):
    one = write(tmp_path, "a.db", "n1", "DEU", "GPU-1", 1_000)
    copy = shutil.copy(one, tmp_path / "copy.db")
    result = run("energy", "merge", one, copy)
    assert result.exit_code == 78
    assert f"{one} and {copy}: both have meter GPU-1 of node n1" in result.stderr


def test_a_period_does_not_hide_an_overlap(run, tmp_path):
    one = write(tmp_path, "a.db", "n1", "DEU", "GPU-1", 1_000)
    copy = shutil.copy(one, tmp_path / "copy.db")
    assert run("energy", "merge", one, copy, "--since", "2026-03-11").exit_code == 78


def test_two_nodes_of_one_name_are_refused(run, tmp_path):
    one = write(tmp_path, "a.db", "n1", "DEU", "GPU-1", 1_000)
    two = write(tmp_path, "b.db", "n1", "DEU", "GPU-2", 1_000)
    result = run("energy", "merge", one, two)
    assert result.exit_code == 78
    assert "that are both named n1; give one another name" in result.stderr


def test_without_a_ledger_it_is_wrong_usage(run):
    assert run("energy", "merge").exit_code == 2
