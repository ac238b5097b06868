from fractions import Fraction

import pytest

from nodeserve.energy.carbon import CarbonFigure
from nodeserve.energy.ledger_rows import Column
from nodeserve.energy.report_lines import Line, Phase, TokenSums

TOKENS = TokenSums(requests=2, prompt=600, cached=200, output=400, scrap=9)
ENERGY = {
    Column.USEFUL: 1_000,
    Column.SCRAP: 200,
    Column.UNATTRIBUTED: 30,
    Column.IDLE: 4,
    Column.QUARANTINE: 5,
}
DERIVED = (
    *("j_per_token", "j_per_output_token", "settled_j_per_token", "g_per_1k_tokens"),
    *("sci_g_per_million_tokens", "electricity_per_million_tokens"),
)


def a_line(**changes):
    given = {
        "name": "api",
        "seconds": 10.0,
        "tokens": TOKENS,
        "energy": ENERGY,
        "is_estimate": False,
        "phases": {"prefill": Phase(useful_mj=800, tokens=TOKENS)},
        "carbon": CarbonFigure(mass_ug=5_000_000, uses=()),
        "embodied_ug": 1_000_000,
        "cost": 250_000,
        "electricity_cost": 100_000,
    }
    return Line(**{**given, **changes})


def test_figures_follow_from_sums():
    line = a_line()
    assert (line.metered_mj, line.active_mj, line.settled_mj) == (1_239, 1_200, 1_234)
    assert line.tokens_per_s == 100.0
    assert line.j_per_token == Fraction(12, 10_000)
    assert line.j_per_output_token == Fraction(12, 4_000)
    assert line.settled_j_per_token == Fraction(1_234, 1_000_000)
    assert line.prefill_j_per_token == Fraction(8, 4_000)
    assert line.decode_j_per_token is None
    assert line.g_per_1k_tokens == 5
    assert line.sci_g_per_million_tokens == 6_000
    assert line.cost_per_million_tokens == 250
    assert line.electricity_per_million_tokens == 100


@pytest.mark.parametrize("tokens", [None, TokenSums(), TokenSums(output=5, unmetered=5)])
def test_nothing_is_said_per_token_where_there_is_none_or_energy_is_missing(tokens):
    line = a_line(tokens=tokens)
    assert [getattr(line, name) for name in DERIVED] == [None] * len(DERIVED)


def test_what_is_unknown_stays_unknown():
    line = a_line(energy=None, carbon=None, embodied_ug=None, cost=None, electricity_cost=None)
    assert [getattr(line, name) for name in DERIVED] == [None] * len(DERIVED)
    assert (line.part_mj(Column.IDLE), line.metered_mj, line.active_mj) == (None, None, None)
    assert (line.settled_mj, line.cost_per_million_tokens) == (None, None)
    assert a_line(seconds=0.0).tokens_per_s is None


def test_sums_of_tokens_add_up_field_by_field():
    other = TokenSums(requests=1, prompt=1, cached=1, output=1, scrap=1, unmetered=1, unpriced=1)
    both = TOKENS.plus(other)
    assert both == TokenSums(
        requests=3, prompt=601, cached=201, output=401, scrap=10, unmetered=1, unpriced=1
    )
    assert (both.served, both.computed_prompt) == (1_002, 400)
