from fractions import Fraction

from nodeserve.energy.ledger_rows import Column, Piece, Place
from nodeserve.energy.prices import Price, Prices
from nodeserve.energy.report_sums import Sums
from tests.support.energy_rows import TEN, some_factors, some_tokens

PLACE = Place("n1", "DEU", TEN)
SECONDS = {"a": 1.0, "b": 1.0}


def a_piece(amount, column=Column.USEFUL):
    return Piece(PLACE, "api", "llama", "decode", "GPU-1", column, amount)


def lines(sums, **settings):
    made = sums.lines(SECONDS, **{"knows_embodied": True, **settings})
    return {line.name: line for line in made}


def test_money_is_rounded_once_so_that_the_groups_add_up():
    price = Price(prompt=Fraction("0.3"), cached=Fraction(0), output=Fraction(0))
    sums = Sums(some_factors(prices=Prices(currency="EUR", prices=(price,))), has_tokens=True)
    for name in ("a", "b"):
        for _ in range(8):  # 0.3 millionths each: rounded row by row it would be nothing
            sums.add_tokens(name, some_tokens(prompt=1), is_metered=True)
    found = lines(sums)
    assert sorted(line.cost for line in found.values()) == [2, 3]
    assert found["a"].electricity_cost is None


def test_one_row_without_a_price_makes_a_group_s_cost_unknown():
    price = Price(listener="api", prompt=Fraction(1), cached=Fraction(1), output=Fraction(1))
    sums = Sums(some_factors(prices=Prices(currency="EUR", prices=(price,))), has_tokens=True)
    for name, listener in (("a", "api"), ("b", "api"), ("b", "other")):
        sums.add_tokens(name, some_tokens(5, 5, listener=listener), is_metered=True)
    found = lines(sums)
    assert (found["a"].cost, found["b"].cost) == (10, None)
    assert found["b"].tokens.unpriced == 10


def test_energy_in_quarantine_has_neither_carbon_nor_cost():
    sums = Sums(some_factors(), has_tokens=True)
    sums.add_energy("a", a_piece(10**9, Column.QUARANTINE), is_estimate=False)
    sums.add_energy("b", a_piece(10**9), is_estimate=True)
    found = lines(sums)
    assert (found["a"].electricity_cost, found["a"].carbon) == (0, None)
    assert found["b"].carbon.mass_ug > 0
    assert (found["a"].is_estimate, found["b"].is_estimate) == (False, True)


def test_embodied_carbon_is_unknown_where_any_device_s_is():
    sums = Sums(some_factors(), has_tokens=True)
    sums.add_embodied("a", a_piece(42))
    assert lines(sums)["a"].embodied_ug == 42
    assert lines(sums, knows_embodied=False)["a"].embodied_ug is None


def test_roles_are_apart():
    sums = Sums(some_factors(), has_tokens=True)
    sums.add_energy("a", a_piece(3_000), is_estimate=False)
    sums.add_tokens("a", some_tokens(10, 3), is_metered=True)
    sums.add_tokens("a", some_tokens(10, 0, role="prefill"), is_metered=True)
    phases = lines(sums)["a"].phases
    assert phases["decode"].j_per(3) == 1
    assert phases["prefill"].tokens.prompt == 10
    assert phases["prefill"].j_per(10) == 0
