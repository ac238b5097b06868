"""How much of something there was within the last seconds."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Window:
    """A sum that forgets what is older than ``length_s``.

    It keeps one entry for each amount above zero, so what rarely happens costs next to nothing.
    """

    length_s: float
    total: float = 0.0
    _kept: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, amount: float, now_s: float) -> float:
        """Add what has just happened, and return how much there now is."""
        if amount > 0:
            self._kept.append((now_s, amount))
            self.total += amount
        while self._kept and self._kept[0][0] <= now_s - self.length_s:
            self.total -= self._kept.popleft()[1]
        if not self._kept:
            self.total = 0.0  # what rounding has left over
        return self.total
