"""Learn what a device draws with nothing to do, by its clocks; pure."""

from collections import deque
from typing import Final

STEADY_S: Final = 5.0
"""How long a device must have had nothing to do: power is a mean, and a card cools slowly."""

WINDOW_S: Final = 2.0
MAX_SPREAD: Final = 0.1
"""Power is steady when it has not moved by more than this share over the window."""

CLOCK_STEP_MHZ: Final = 500
"""Clocks this near are alike. A card idles at some 300 MHz, and near its highest clock while a
process has a context on it; in between it draws in between."""


class IdlePower:
    """One device's idle power for each range of clocks: the lowest steady power seen there."""

    def __init__(self) -> None:
        self._lowest_mw: dict[int, int] = {}
        self._recent: deque[tuple[float, int, int]] = deque()
        self._idle_since_s: float | None = None

    def take(
        self, now_s: float, *, power_mw: int | None, clock_mhz: int | None, is_idle: bool
    ) -> None:
        """Take what a device draws; ``is_idle`` is whether it had nothing to do of late."""
        state = _state(clock_mhz)
        if not is_idle or not power_mw or state is None:
            self._idle_since_s = None
            self._recent.clear()
            return
        if self._idle_since_s is None:
            self._idle_since_s = now_s
        recent = self._recent
        recent.append((now_s, state, power_mw))
        while now_s - recent[0][0] > WINDOW_S:
            recent.popleft()
        if now_s - self._idle_since_s < STEADY_S or {seen for _, seen, _ in recent} != {state}:
            return
        powers_mw = [power for _, _, power in recent]
        if max(powers_mw) - min(powers_mw) <= MAX_SPREAD * min(powers_mw):
            mean_mw = sum(powers_mw) // len(powers_mw)
            self._lowest_mw[state] = min(mean_mw, self._lowest_mw.get(state, mean_mw))

    def at(self, clock_mhz: int | None) -> int | None:
        """Return the idle power at these clocks, in mW.

        Where a device was never idle at them, that at the next lower ones: it draws no less. None
        where it was not idle at any of these either.
        """
        state = _state(clock_mhz)
        if state is None:
            return None
        known = [seen for seen in self._lowest_mw if seen <= state]
        return self._lowest_mw[max(known)] if known else None


def _state(clock_mhz: int | None) -> int | None:
    return None if clock_mhz is None else clock_mhz // CLOCK_STEP_MHZ
