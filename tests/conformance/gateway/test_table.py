"""The pages for operators show the table that the suite proves."""

from pathlib import Path

import pytest

from tests.conformance.gateway.capabilities import CAPABILITIES
from tests.conformance.gateway.table import BEGIN, END, markdown

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["README.md", "docs/gateways.md"])
def test_the_page_and_the_suite_agree(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")

    assert page[page.index(BEGIN) : page.index(END) + len(END)] == markdown()


def test_every_row_has_its_own_name() -> None:
    assert len({(row.group, row.name) for row in CAPABILITIES}) == len(CAPABILITIES)
