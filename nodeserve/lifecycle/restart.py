"""How long to wait before a dead process comes back, and when to stop trying."""

from dataclasses import dataclass, field
from typing import Final

_GOLDEN: Final = 0.618
"""Multiples of it fall far apart within 0 to 1."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Restart intensity: more than ``max_deaths`` within ``window_s`` opens the breaker.

    The numbers are those of common practice (Erlang's intensity and period, supervisord's
    growing delay): five deaths in ten minutes, half a second doubling up to a minute. The
    first death of all costs no delay: whoever waits for the process waits for nothing else.
    Delays are stretched by up to ``jitter``, so that processes that died together do not all
    load at the same time.
    """

    first_delay_s: float = 0.5
    jitter: float = 0.2
    max_delay_s: float = 60.0
    max_deaths: int = 5
    window_s: float = 600.0


@dataclass(slots=True)
class RestartHistory:
    """The recent deaths of one process.

    ``place`` is its own number among the processes of its node, for the jitter.
    """

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    place: int = 0
    deaths_s: list[float] = field(default_factory=list)

    def note_death(self, now_s: float) -> float | None:
        """Record a death and return the seconds to wait before the next start.

        Returns:
            The delay: 0 after the first death in the window, then doubling with each; None
            when the process died too often and somebody has to look.
        """
        self.deaths_s = [at_s for at_s in self.deaths_s if at_s > now_s - self.policy.window_s]
        self.deaths_s.append(now_s)
        if len(self.deaths_s) > self.policy.max_deaths:
            return None
        doublings = len(self.deaths_s) - 2
        if doublings < 0:
            return 0.0
        delay_s = min(self.policy.first_delay_s * 2.0**doublings, self.policy.max_delay_s)
        return delay_s * (1 + self.policy.jitter * (self.place * _GOLDEN % 1.0))

    def forgive(self) -> None:
        """Forget the recent deaths: an operator asked for a start."""
        self.deaths_s.clear()
