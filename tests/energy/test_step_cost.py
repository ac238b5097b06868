"""A step's time is shared as its Shapley value says, in closed form."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.step_cost import MAX_ATOMS, rates_of, step_cost
from nodeserve.wire.accounting import WorkShape
from tests.energy.shapes import SHAPE

SECONDS = st.floats(0.0, 0.1)
ATOMS = st.lists(st.tuples(SECONDS, SECONDS), max_size=MAX_ATOMS)


def exact(parts, weights_s):
    """The mean over all orders of what each adds to the longer of computing and of memory."""
    totals = [0.0] * len(parts)
    orders = list(itertools.permutations(range(len(parts))))
    for order in orders:
        compute_s = memory_s = before = 0.0
        for place in order:
            compute_s += parts[place][0]
            memory_s += parts[place][1]
            now = max(compute_s, memory_s + weights_s)
            totals[place] += now - before
            before = now
    return [total / len(orders) for total in totals]


def time_shares(even, atoms, weights_s):
    """Each one's share of a step that takes exactly as long as is modelled."""
    compute_s = sum(f for f, _ in [*even, *atoms])
    memory_s = sum(b for _, b in [*even, *atoms])
    cost = step_cost(
        compute_s,
        memory_s,
        len(even) + len(atoms),
        weights_s=weights_s,
        step_s=max(compute_s, memory_s + weights_s),
        atoms=atoms,
    )
    return [cost.equal + cost.compute * f + cost.memory * b for f, b in even] + list(cost.atoms)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=8), ATOMS, SECONDS)
def test_the_shares_of_a_step_add_up_to_its_time(even, atoms, weights_s):
    shares = time_shares(even, atoms, weights_s)
    compute_s = sum(f for f, _ in [*even, *atoms])
    memory_s = sum(b for _, b in [*even, *atoms])
    assert sum(shares) == pytest.approx(max(compute_s, memory_s + weights_s), abs=1e-9)


def test_a_chunk_beside_decoding_members_bears_its_shapley_value():
    even = [(2.7e-5, 2e-4)] * 7
    atoms = [(30e-3, 4e-4)]
    assert time_shares(even, atoms, 6e-3) == pytest.approx(exact(even + atoms, 6e-3), rel=0.02)


def test_two_chunks_beside_decoding_members_bear_their_shapley_values():
    even = [(2.7e-5, 2e-4)] * 6
    atoms = [(30e-3, 4e-4), (3e-3, 4e-4)]
    assert time_shares(even, atoms, 6e-3) == pytest.approx(exact(even + atoms, 6e-3), rel=0.05)


def test_a_batch_bound_by_memory_pays_for_its_memory_and_equally_for_the_weights():
    even = [(1e-5, 1e-4), (1e-5, 4e-4)]
    assert time_shares(even, [], 6e-3) == pytest.approx([3.1e-3, 3.4e-3])
    assert exact(even, 6e-3) == pytest.approx([3.1e-3, 3.4e-3])


def test_a_chunk_alone_bears_the_whole_step():
    assert time_shares([], [(30e-3, 1e-4)], 6e-3) == pytest.approx([30e-3])


@given(SECONDS, SECONDS, st.integers(1, 50), SECONDS, SECONDS)
def test_what_the_model_does_not_explain_is_shared_equally(
    compute_s, memory_s, num_members, weights_s, extra_s
):
    modelled_s = max(compute_s, memory_s + weights_s)
    exactly, longer = (
        step_cost(compute_s, memory_s, num_members, weights_s=weights_s, step_s=step_s)
        for step_s in (modelled_s, modelled_s + extra_s)
    )
    assert longer.equal - exactly.equal == pytest.approx(extra_s / num_members)
    assert longer.compute == pytest.approx(exactly.compute)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=8), ATOMS, SECONDS, SECONDS)
def test_no_share_is_negative(even, atoms, weights_s, step_s):
    cost = step_cost(
        sum(f for f, _ in [*even, *atoms]),
        sum(b for _, b in [*even, *atoms]),
        len(even) + len(atoms),
        weights_s=weights_s,
        step_s=step_s,
        atoms=atoms,
    )
    assert min(cost.equal, cost.compute, cost.memory) >= 0
    assert all(weight >= -1e-12 for weight in cost.atoms)


def test_rates_are_seconds_at_the_devices_peaks():
    shape = WorkShape(
        token_flops=16e9,
        pair_flops=5e5,
        kv_bytes=131072,
        weight_bytes=16e9,
        flops_per_s=1e15,
        bytes_per_s=2e12,
    )
    rates = rates_of(shape)
    assert rates.token_s == pytest.approx(16e-6)
    assert rates.pair_s == pytest.approx(5e-10)
    assert rates.kv_s == pytest.approx(65.536e-9)
    assert rates.weights_s == pytest.approx(8e-3)


def test_a_shape_of_work_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no shape of work"):
        rates_of(msgspec.structs.replace(SHAPE, flops_per_s=0.0))
    with pytest.raises(ValueError, match="no shape of work"):
        rates_of(msgspec.structs.replace(SHAPE, kv_bytes=math.nan))
