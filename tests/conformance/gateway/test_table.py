"""The page for operators shows the table that the suite proves."""

from pathlib import Path

from tests.conformance.gateway.capabilities import CAPABILITIES
from tests.conformance.gateway.table import BEGIN, END, markdown

PAGE = Path(__file__).parents[3] / "docs" / "gateways.md"


def test_the_page_and_the_suite_agree() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert page[page.index(BEGIN) : page.index(END) + len(END)] == markdown()


def test_every_row_has_its_own_name() -> None:
    assert len({(row.group, row.name) for row in CAPABILITIES}) == len(CAPABILITIES)
