from fractions import Fraction

import pytest

from nodeserve.energy.prices import Price, Prices
from nodeserve.energy.sci import Pue
from nodeserve.errors import ConfigError
from tests.support.energy_rows import some_tokens


def a_price(output, **places):
    return Price(prompt=Fraction(1), cached=Fraction(0), output=Fraction(output), **places)


def test_the_closest_price_wins_whatever_the_order():
    prices = Prices(
        currency="EUR",
        prices=(
            a_price(4),
            a_price(3, model="llama"),
            a_price(2, listener="api"),
            a_price(1, listener="api", model="llama"),
        ),
    )
    places = (("api", "llama"), ("api", "qwen"), ("batch", "llama"), ("batch", "qwen"))
    assert [prices.find(*place).output for place in places] == [1, 2, 3, 4]


def test_a_price_per_million_tokens_is_millionths_per_token():
    prices = Prices(currency="EUR", prices=(a_price("0.6"),))
    row = some_tokens(prompt=100, cached_tokens=40, output=10, scrap_tokens=99)
    assert prices.cost_of(row) == 60 + 6


def test_without_a_price_the_cost_is_unknown():
    prices = Prices(currency="EUR", prices=(a_price(1, listener="batch"),))
    assert prices.cost_of(some_tokens(10, 10)) is None
    assert prices.electricity(1, Pue()) is None


def test_electricity_is_paid_with_the_site_s_share():
    prices = Prices(currency="EUR", electricity_per_kwh=Fraction("0.2"))
    pue = Pue(value=Fraction("1.5"), source="site")
    assert prices.electricity(3_600_000_000, pue) == 300_000


def test_two_prices_for_one_thing_are_refused():
    with pytest.raises(ConfigError, match="listener api and model any have 2 prices"):
        Prices(currency="EUR", prices=(a_price(1, listener="api"), a_price(2, listener="api")))


def test_a_negative_price_is_refused():
    with pytest.raises(ConfigError, match="price of output tokens is -1"):
        a_price(-1)
