"""Divide whole millijoules by weights, so that the parts add up."""

from collections.abc import Mapping
from typing import Final, TypeVar

from nodeserve.errors import InvariantError

K = TypeVar("K", bound=tuple[str, ...] | str)

_SCALE: Final = 1 << 60
"""Weights are made whole numbers of this to the largest: nothing is rounded after that."""


def split_energy_mj(window_mj: int, weights: Mapping[K, float]) -> dict[K, int]:
    """Split one window's energy by weight, by the method of largest remainders.

    The parts add up to ``window_mj`` exactly: the millijoules that rounding leaves over go to the
    largest remainders, and equal remainders go by id. All of it is done in whole numbers, so that
    neither the order of the weights nor their scale matters.

    Args:
        window_mj: What is to be split, in mJ.
        weights: Who is to bear how much, each finite and at least 0. Their ratios alone matter.

    Returns:
        Millijoules per id; who weighs nothing gets 0. Empty when nobody weighs anything: the
        caller books the window as idle, or to an account of its own.

    Raises:
        InvariantError: ``window_mj`` is negative, so a counter's reset got through; or a weight
            is negative or no number.
    """
    if window_mj < 0:
        raise InvariantError(f"energy: a window of {window_mj} mJ cannot be split; report this bug")
    largest = max(weights.values(), default=0.0)
    if not 0 <= largest < float("inf") or any(not weight >= 0 for weight in weights.values()):
        raise InvariantError(f"energy: weights of a window are {dict(weights)}; report this bug")
    if largest == 0:
        return {}
    # A denormal largest weight would overflow the quotient: it is a number all the same.
    whole = {key: int(weight / largest * _SCALE) for key, weight in weights.items()}
    total = sum(whole.values())
    parts: dict[K, int] = {}
    remainders: list[tuple[int, K]] = []
    for key, weight in whole.items():
        part, remainder = divmod(window_mj * weight, total)
        parts[key] = part
        if remainder:
            remainders.append((-remainder, key))
    left = window_mj - sum(parts.values())
    if left:
        remainders.sort()
        for _, key in remainders[:left]:
            parts[key] += 1
    return parts
