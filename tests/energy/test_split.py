"""Largest remainders: exact sums, no order, no scale."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.split import split_energy_mj
from nodeserve.errors import InvariantError

WEIGHT = st.one_of(st.just(0.0), st.floats(1e-9, 1e9))
WEIGHTS = st.dictionaries(st.text("abc", min_size=1, max_size=4), WEIGHT, max_size=30)
MJ = st.integers(0, 10**12)


@given(MJ, WEIGHTS)
def test_parts_add_up_to_the_window_and_none_is_negative(window_mj, weights):
    parts = split_energy_mj(window_mj, weights)
    if not any(weights.values()):
        assert parts == {}
        return
    assert sum(parts.values()) == window_mj
    assert all(part >= 0 for part in parts.values())
    assert all(parts[key] == 0 for key, weight in weights.items() if not weight)


@given(MJ, WEIGHTS, st.randoms())
def test_neither_order_nor_scale_matters(window_mj, weights, random):
    items = list(weights.items())
    random.shuffle(items)
    assert split_energy_mj(window_mj, dict(items)) == split_energy_mj(window_mj, weights)
    doubled = {key: 2 * weight for key, weight in weights.items()}
    assert split_energy_mj(window_mj, doubled) == split_energy_mj(window_mj, weights)


@given(MJ, WEIGHTS)
def test_who_weighs_more_never_gets_less_and_equals_differ_by_1_mj(window_mj, weights):
    parts = split_energy_mj(window_mj, weights)
    ordered = sorted(parts, key=lambda key: weights[key])
    for lighter, heavier in pairwise(ordered):
        slack = 1 if math.isclose(weights[lighter], weights[heavier]) else 0
        assert parts[lighter] <= parts[heavier] + slack


@given(MJ, WEIGHTS)
def test_twice_the_energy_is_twice_each_part_but_for_rounding(window_mj, weights):
    once = split_energy_mj(window_mj, weights)
    twice = split_energy_mj(2 * window_mj, weights)
    assert all(abs(twice[key] - 2 * once[key]) <= 2 for key in once)


def test_equal_remainders_go_by_id():
    assert split_energy_mj(5, {"b": 1.0, "c": 1.0, "a": 1.0}) == {"b": 2, "c": 1, "a": 2}


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": math.nan}, {"a": math.inf}])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InvariantError):
        split_energy_mj(1, weights)


def test_a_negative_window_is_refused():
    with pytest.raises(InvariantError, match="-1 mJ"):
        split_energy_mj(-1, {"a": 1.0})
