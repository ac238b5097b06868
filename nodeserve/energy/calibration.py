"""What a device draws for what: learnt from its own windows, beginning with what is typical.

A window's energy above idle is, to a good approximation, so much for each second in which steps
ran, for each second's worth of computing and for each of reading memory, at the device's peaks.
How much differs between kinds of GPU, clocks and models. Regression over windows says it as far as
they differ in kind; where they don't, the ratios stay as they are, and then do not matter.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.batch import Caused


@dataclass(frozen=True, slots=True)
class Draw:
    """Energy per second of steps, of computing and of memory; their ratios alone matter."""

    step: float
    compute: float
    memory: float

    def weigh(self, caused: Caused) -> float:
        """Return what a leg weighs by what it has caused."""
        return (
            self.step * caused.step_s
            + self.compute * caused.compute_s
            + self.memory * caused.memory_s
        )


TYPICAL: Final = Draw(1.0, 4.8, 1.9)
"""Of an H100: 120 W while it is busy, 0.98 pJ/FLOP at 593 TFLOP/s, 86 pJ/B at 2.68 TB/s."""

PRIOR_WINDOWS: Final = 0.5
"""For how many windows what is typical counts."""

KEPT: Final = 0.998
"""What a window still counts after the next one: half of it is gone after some 6 minutes."""

MAX_FACTOR: Final = 8.0
"""How far from what is typical a device is believed to be."""

_ROUNDS: Final = 50


class Calibration:
    """One meter's draw; ``draw`` is what is known of it.

    It is a ridge regression that keeps to what is positive and near the typical.
    """

    def __init__(self) -> None:
        self.draw = TYPICAL
        self._windows = 0.0
        self._products = [[0.0] * 3 for _ in range(3)]
        self._energies = [0.0] * 3
        self._explained = self._used = 0.0

    def learn(self, caused: Iterable[Caused], used_mj: int) -> None:
        """Take in a window: all that was caused in it, and what was used above idle."""
        total = Caused()
        for one in caused:
            total = total.plus(one)
        # By what is typical, so that all three coefficients would be equal.
        row = (
            total.step_s * TYPICAL.step,
            total.compute_s * TYPICAL.compute,
            total.memory_s * TYPICAL.memory,
        )
        if sum(row) <= 0:
            return
        self._windows = self._windows * KEPT + 1.0
        self._explained = self._explained * KEPT + sum(row)
        self._used = self._used * KEPT + used_mj
        for i in range(3):
            self._energies[i] = self._energies[i] * KEPT + row[i] * used_mj
            for j in range(3):
                self._products[i][j] = self._products[i][j] * KEPT + row[i] * row[j]
        self._solve()

    def _solve(self) -> None:
        """Find the coefficients by going round them, each the best between its bounds."""
        mean = self._used / self._explained
        if mean <= 0:
            return
        strength = PRIOR_WINDOWS / self._windows
        strength *= (self._products[0][0] + self._products[1][1] + self._products[2][2]) / 3
        found = [mean] * 3
        for _ in range(_ROUNDS):
            for i in range(3):
                others = sum(self._products[i][j] * found[j] for j in range(3) if j != i)
                best = self._energies[i] - others + strength * mean
                best /= self._products[i][i] + strength
                found[i] = min(max(best, mean / MAX_FACTOR), mean * MAX_FACTOR)
        self.draw = Draw(
            found[0] / mean * TYPICAL.step,
            found[1] / mean * TYPICAL.compute,
            found[2] / mean * TYPICAL.memory,
        )
