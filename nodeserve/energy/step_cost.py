"""How much of a step's time each request in it has caused.

A step that computes for ``f`` seconds and reads its requests' KV for ``b`` and the weights for
``w`` seconds takes ``max(f, b + w)``, and what the device cannot do at that speed on top. Who is
to bear how much of the ``max`` is answered by the Shapley value: what a request adds to those who
happen to be there before it, in the mean over all orders. Members of a batch are so many and so
alike that those before one of them are, to a good approximation, a fraction of all that is even
in kind; chunks of prompts are few and large, and each is there or not. Then the value has a closed
form, and is linear in a member's ``f`` and ``b``: it need not be computed for each one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from nodeserve.wire.accounting import WorkShape

MAX_ATOMS: Final = 4
"""Chunks of one step that are treated as indivisible; more are so small that none of them is."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of the device per token, per query-key pair, per token's KV, per step's weights."""

    token_s: float
    pair_s: float
    kv_s: float
    weights_s: float


def rates_of(shape: WorkShape) -> Rates:
    """Return how long an engine's device takes for what at its peaks.

    Raises:
        ValueError: The peaks are not above 0, or a cost is negative or no number.
    """
    costs = (shape.token_flops, shape.pair_flops, shape.kv_bytes, shape.weight_bytes)
    peaks = (shape.flops_per_s, shape.bytes_per_s)
    if not all(0 <= cost < math.inf for cost in costs) or not all(0 < p < math.inf for p in peaks):
        raise ValueError(f"{shape} is no shape of work: peaks must be above 0, and all be finite")
    return Rates(
        token_s=shape.token_flops / shape.flops_per_s,
        pair_s=shape.pair_flops / shape.flops_per_s,
        kv_s=shape.kv_bytes / shape.bytes_per_s,
        weights_s=shape.weight_bytes / shape.bytes_per_s,
    )


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step: a member has caused ``equal + compute * f + memory * b`` of them.

    ``atoms`` are those of the chunks that were given as such, in their order.
    """

    equal: float
    compute: float
    memory: float
    atoms: tuple[float, ...] = ()


def step_cost(
    compute_s: float,
    memory_s: float,
    num_members: int,
    *,
    weights_s: float,
    step_s: float,
    atoms: Sequence[tuple[float, float]] = (),
) -> StepCost:
    """Return how much of one step's time its requests have caused.

    Args:
        compute_s: Seconds of computing of all who are in the step, atoms too.
        memory_s: Seconds of reading and writing their KV.
        num_members: How many they are, at least 1.
        weights_s: Seconds of reading the model's weights, shared equally.
        step_s: How long the step took.
        atoms: Seconds of computing and of memory of each chunk that is not to be treated as
            part of an even mixture; at most MAX_ATOMS.
    """
    modelled_s = max(compute_s, memory_s + weights_s)
    if modelled_s <= 0:
        return StepCost(step_s / num_members, 0.0, 0.0, (step_s / num_members,) * len(atoms))
    # What the model does not explain is the step's own; what it explains too much is scaled away.
    scale = min(1.0, step_s / modelled_s)
    even = (
        compute_s - sum(f for f, _ in atoms),
        memory_s - sum(b for _, b in atoms),
    )
    bound, atom_s = _shapley(even, atoms, weights_s)
    equal = (scale * weights_s + max(0.0, step_s - modelled_s)) / num_members
    wholes = tuple(equal + scale * max(own_s, 0.0) for own_s in atom_s)
    return StepCost(equal, scale * bound, scale * (1 - bound), wholes)


def _shapley(
    even: tuple[float, float], atoms: Sequence[tuple[float, float]], weights_s: float
) -> tuple[float, list[float]]:
    """Return how likely a step is bound by computing when a member joins, and each atom's time.

    With a fraction ``x`` of the mixture and the atoms ``T`` there, the step takes the longer of
    ``F(T) + x * even_f`` and ``B(T) + x * even_b + weights_s``. Each atom is there with
    probability ``x``, so that what is sought are integrals over ``x`` of polynomials by pieces.
    The weights' own time, which the first to come causes, is left out: all bear it equally.
    """
    count = len(atoms)
    bound = 0.0
    atom_s = [0.0] * count
    for inside in product((False, True), repeat=count):
        size = sum(inside)
        lead = sum(f - b for (f, b), is_in in zip(atoms, inside, strict=True) if is_in) - weights_s
        slope = even[0] - even[1]
        low, high = _where_positive(lead, slope)
        bound += _integral(size, count - size, low, high)
        # An atom's value: what the coalitions with it take more than those without.
        extra = _mean_excess(size, count, lead, slope)
        for place, is_in in enumerate(inside):
            atom_s[place] += extra[0] if is_in else -extra[1]
    for place, (_, b) in enumerate(atoms):
        atom_s[place] += b
    return min(max(bound, 0.0), 1.0), atom_s


def _mean_excess(size: int, count: int, lead: float, slope: float) -> tuple[float, float]:
    """Return the mean of ``max(0, lead + slope * x)`` as a coalition with an atom, and without.

    A step's time beyond its memory's is that excess; of ``count`` atoms ``size`` are there, the
    one in question among them in the first case and not in the second.
    """
    low, high = _where_positive(lead, slope)
    means = []
    for others_in, others_out in ((size - 1, count - size), (size, count - 1 - size)):
        if others_in < 0 or others_out < 0:
            means.append(0.0)
            continue
        constant = lead * _integral(others_in, others_out, low, high)
        linear = slope * _integral(others_in + 1, others_out, low, high)
        means.append(constant + linear)
    return means[0], means[1]


def _where_positive(lead: float, slope: float) -> tuple[float, float]:
    """Return between which fractions ``lead + slope * x`` is above 0; equal ones for nowhere."""
    if slope == 0:
        return (0.0, 1.0) if lead > 0 else (0.0, 0.0)
    root = min(max(-lead / slope, 0.0), 1.0)
    return (root, 1.0) if slope > 0 else (0.0, root)


def _integral(ins: int, outs: int, low: float, high: float) -> float:
    """Return the integral of ``x ** ins * (1 - x) ** outs`` from ``low`` to ``high``."""
    if high <= low:
        return 0.0
    if outs == 0:
        return float(high ** (ins + 1) - low ** (ins + 1)) / (ins + 1)
    # (1 - x) ** outs = (1 - x) ** (outs - 1) - x * (1 - x) ** (outs - 1)
    return _integral(ins, outs - 1, low, high) - _integral(ins + 1, outs - 1, low, high)
