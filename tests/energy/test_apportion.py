from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.apportion import apportion, round_parts
from nodeserve.errors import InvariantError

WEIGHTS = st.dictionaries(st.text(max_size=2), st.integers(0, 10**12), min_size=1, max_size=9)
AMOUNTS = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.fractions(min_value=0, max_value=10**9, max_denominator=10**6),
    max_size=9,
)


@given(st.integers(0, 10**15), WEIGHTS)
def test_parts_add_up_and_are_within_one_of_their_due(total, weights):
    whole = sum(weights.values())
    if not whole:
        return
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    for key, weight in weights.items():
        assert abs(parts[key] - Fraction(total * weight, whole)) < 1


def test_what_is_left_over_goes_to_the_largest_remainders_and_then_by_order():
    assert apportion(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert apportion(2, {"a": 1, "b": 5}) == {"a": 0, "b": 2}


def test_nothing_is_divided_among_nobody():
    assert apportion(0, {"a": 0}) == {"a": 0}
    assert apportion(0, {}) == {}
    with pytest.raises(InvariantError, match="nobody has any weight"):
        apportion(5, {"a": 0})
    with pytest.raises(InvariantError, match="cannot divide -1"):
        apportion(-1, {"a": 1})
    with pytest.raises(InvariantError, match="negative"):
        round_parts({"a": Fraction(-1, 2)})


@given(AMOUNTS)
def test_rounded_sums_do_not_depend_on_how_amounts_are_grouped(amounts):
    totals = set()
    for key_of in (lambda key: key[0], lambda key: key[1], lambda key: "all", lambda key: key):
        groups = {}
        for key, amount in amounts.items():
            groups[key_of(key)] = groups.get(key_of(key), Fraction()) + amount
        parts = round_parts(groups)
        assert all(abs(parts[key] - groups[key]) <= 1 for key in groups)
        totals.add(sum(parts.values()))
    assert len(totals) == 1
