"""The page about faults and the tests of faults name each other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
NAMED = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")


def names_in(path):
    return set(re.findall(r"(?m)^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8")))


def test_every_row_names_a_test_that_there_is():
    page = PAGE.read_text(encoding="utf-8")
    rows = page[page.index("| --- ") : page.index("## Alive")].splitlines()[1:]
    for row in filter(None, rows):
        found = NAMED.findall(row)
        assert found, row
        for path, name in found:
            assert name in names_in(ROOT / path), row


def test_every_test_of_a_fault_has_its_row():
    named = {
        name
        for path, name in NAMED.findall(PAGE.read_text(encoding="utf-8"))
        if path.startswith("tests/faults/")
    }
    others = set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)}
    assert set().union(*map(names_in, others)) == named
