"""Divide what is whole so that the parts add up to it: largest remainder."""

from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

from nodeserve.errors import InvariantError

K = TypeVar("K", bound=Hashable)


def apportion(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """Divide ``total`` in proportion to integer weights, each at least 0.

    The parts add up to ``total`` exactly: units that rounding leaves over go to the largest
    remainders, and equal remainders go by the order of ``weights``.

    Raises:
        InvariantError: A weight or the total is negative, or there is a total and no weight.
    """
    whole = sum(weights.values())
    if total < 0 or any(weight < 0 for weight in weights.values()):
        raise InvariantError(f"cannot divide {total} by weights {list(weights.values())}")
    if whole == 0:
        if total:
            raise InvariantError(f"cannot divide {total} where nobody has any weight")
        return dict.fromkeys(weights, 0)
    return _rounded(
        {key: Fraction(total * weight, whole) for key, weight in weights.items()}, total
    )


def round_parts(exact: Mapping[K, Fraction]) -> dict[K, int]:
    """Round exact amounts, each at least 0, so that they add up to their rounded sum.

    The sum of exact amounts does not depend on how they are grouped, so neither does the sum of
    the rounded ones: reports of the same rows by different keys have the same total.

    Raises:
        InvariantError: An amount is negative.
    """
    if any(amount < 0 for amount in exact.values()):
        raise InvariantError(f"cannot round negative amounts: {list(exact.values())}")
    return _rounded(exact, round(sum(exact.values(), Fraction())))


def _rounded(exact: Mapping[K, Fraction], total: int) -> dict[K, int]:
    parts = {key: amount.numerator // amount.denominator for key, amount in exact.items()}
    missing = total - sum(parts.values())
    by_remainder = sorted(exact, key=lambda key: parts[key] - exact[key])
    for key in by_remainder[:missing]:
        parts[key] += 1
    return parts
