"""Which states of a device are not as they should be; pure."""

import re
from collections.abc import Iterator
from typing import Final

from nodeserve.device.base import Condition, State

LOADED: Final = 0.5
"""From this utilisation on a link is as fast as it ever gets; an idle one slows down to save."""


NVLINK_XIDS: Final = frozenset({74, *range(144, 151)})
"""Whose text alone says how bad it is. Source: NVIDIA's XID catalogue, 2025-10."""

_FATAL: Final = re.compile(r"(?<!non-)\bfatal\b", re.IGNORECASE)


def is_nvlink_fatal(number: int, text: str) -> bool:
    """Return whether the kernel calls an NVLink's error fatal; it writes ``Nonfatal``, too."""
    return number in NVLINK_XIDS and _FATAL.search(text) is not None


def look(condition: Condition, state: State) -> Iterator[tuple[str, str | None]]:
    """Yield signals of the health table that are looked up, each with what is wrong, or None.

    What a device does not say yields nothing.
    """
    if condition.num_nvlinks is not None:
        yield "nvlink_inactive", _nvlinks(condition)
    if condition.is_sram_worn is not None:
        yield "sram_ecc_threshold", "over its threshold" if condition.is_sram_worn else None
    if condition.is_fabric_complete is not None:
        yield "fabric_incomplete", None if condition.is_fabric_complete else "not complete"
    if condition.is_persistent is not None:
        yield "persistence_off", None if condition.is_persistent else "off"
    if state.temperature_c is not None and condition.slowdown_temperature_c is not None:
        limit_c = condition.slowdown_temperature_c
        is_hot = state.temperature_c >= limit_c
        yield "temperature_limit", f"{state.temperature_c} of {limit_c} C" if is_hot else None
    if state.utilization is not None and state.utilization >= LOADED:
        yield from _pcie(condition)


def _nvlinks(condition: Condition) -> str | None:
    """Return which links are down; where all are, the card is connected to no other."""
    down = condition.nvlinks_down
    if not down or len(down) == condition.num_nvlinks:
        return None
    return f"links {', '.join(map(str, down))} of {condition.num_nvlinks}"


def _pcie(condition: Condition) -> Iterator[tuple[str, str | None]]:
    generation, width = condition.pcie_generation, condition.pcie_width
    best = (condition.pcie_max_generation, condition.pcie_max_width)
    if generation is None or width is None or best[0] is None or best[1] is None:
        return
    is_slow = generation < best[0] or width < best[1]
    what = f"generation {generation} x{width} of {best[0]} x{best[1]}"
    yield "pcie_degraded", what if is_slow else None
