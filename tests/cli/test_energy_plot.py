import sys
from xml.etree import ElementTree as ET

import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from tests.support.energy_ledger import write_ledger
from tests.support.energy_rows import a_meter, an_energy, some_tokens

ROWS = LedgerRows(energy=[an_energy(900)], meters=[a_meter(900, 9)], tokens=[some_tokens(5, 5)])


@pytest.fixture
def ledger(tmp_path):
    return write_ledger(tmp_path / "ledger.db", ROWS)


def test_an_svg_of_power_tokens_and_energy_per_token_is_written(run, ledger, tmp_path):
    target = tmp_path / "use.svg"
    assert run("energy", "plot", "--db", ledger, "-o", target).output == f"{target}: 1 hours\n"
    texts = [element.text for element in ET.parse(target).getroot().iter() if element.text]
    for said in ("Power, W", "Tokens served, tokens/s", "Energy above idle per token, J"):
        assert said in texts
    assert "boundary: gpu; method: roofline-window/1" in texts


def test_a_png_is_written_where_matplotlib_is_installed(run, ledger, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "use.png"
    assert run("energy", "plot", "--db", ledger, "-o", target).exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_png_is_refused_with_what_to_do(run, ledger, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    target = tmp_path / "use.png"
    result = run("energy", "plot", "--db", ledger, "-o", target)
    assert result.exit_code == 78
    assert "PNG needs matplotlib: pip install 'nodeserve[plot]', or write .svg" in result.stderr
    assert not target.exists()


def test_a_file_of_another_kind_or_place_is_refused(run, ledger, tmp_path):
    result = run("energy", "plot", "--db", ledger, "-o", tmp_path / "use.pdf")
    assert (result.exit_code, "ends with .svg or .png" in result.stderr) == (78, True)
    result = run("energy", "plot", "--db", ledger, "-o", tmp_path / "none" / "use.svg")
    assert (result.exit_code, "cannot be written: No such file" in result.stderr) == (75, True)
