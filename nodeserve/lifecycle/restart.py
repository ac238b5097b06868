"""How long to wait before a dead process comes back, and when to stop trying."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Restart intensity: more than ``max_deaths`` within ``window_s`` opens the breaker.

    The numbers are those of common practice (Erlang's intensity and period, supervisord's
    growing delay): five deaths in ten minutes, half a second doubling up to a minute.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    max_deaths: int = 5
    window_s: float = 600.0


@dataclass(slots=True)
class RestartHistory:
    """The recent deaths of one process."""

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    deaths_s: list[float] = field(default_factory=list)

    def note_death(self, now_s: float) -> float | None:
        """Record a death and return the seconds to wait before the next start.

        Returns:
            The delay, doubling with each death in the window; None when the process died
            too often and somebody has to look.
        """
        self.deaths_s = [at_s for at_s in self.deaths_s if at_s > now_s - self.policy.window_s]
        self.deaths_s.append(now_s)
        if len(self.deaths_s) > self.policy.max_deaths:
            return None
        doublings = len(self.deaths_s) - 1
        return min(self.policy.first_delay_s * 2.0**doublings, self.policy.max_delay_s)

    def forgive(self) -> None:
        """Forget the recent deaths: an operator asked for a start."""
        self.deaths_s.clear()
