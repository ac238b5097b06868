"""Whether a process that exists also gets on: judged by its progress, not by its pid."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nodeserve.config.node import LivenessSettings
from nodeserve.ids import Generation

STEP_FACTOR: Final = 20.0
"""A step may take so many times the 99th percentile of those before it."""

FIRST_STEPS: Final = 20
"""Steps that may compile or warm up something; without them a percentile says nothing either."""

BUSY_FACTOR: Final = 10.0
"""How much longer a process may take that computes on the CPU meanwhile: it is slow, not stuck."""

BUSY_CORES: Final = 0.25
"""From this much CPU on, a process computes."""

HELD_AFTER_S: Final = 2.0
"""A killed process is gone in milliseconds unless the kernel holds it."""

MAX_DURATIONS: Final = 512

USUAL_BEAT_S: Final = 0.25
"""How often a process with work is heard of; ``silent_s`` is meant for such a one."""

MAX_LOOK_S: Final = 0.4
"""As much as one look adds to anybody's age: who watches late accuses nobody of it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the kernel shows of a process and its descendants.

    ``is_held`` is uninterruptible sleep. ``is_runnable`` also holds of a process that is given no
    CPU. ``cpu_s`` is what all of them have used so far.
    """

    is_stopped: bool = False
    is_held: bool = False
    is_runnable: bool = False
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A process is of no use any more; ``cause`` is one sentence without its name."""

    generation: Generation
    cause: str


@dataclass(frozen=True, slots=True)
class Held:
    """A process lives on though it was killed: what it holds must not be used again."""

    generation: Generation
    cause: str


@dataclass(slots=True)
class _Life:
    """One process; all times are those of the watch."""

    computes_on_cpu: bool
    cpu_s: float = 0.0
    is_busy: bool = True
    busy_s: float = 0.0
    stopped_s: float | None = None
    heard_s: float | None = None
    quiet_s: float = 0.0
    steps: int = 0
    has_work: bool = False
    step_s: float = 0.0
    step_began_s: float = 0.0
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_DURATIONS))
    killed_s: float | None = None
    is_ending: bool = False
    is_reported: bool = False


class Liveness:
    """Judges every process of a node by what it says and what the kernel shows of it.

    Time is counted in looks: however late one is, it adds at most ``MAX_LOOK_S``. So neither a
    suspended machine nor a supervisor that was kept from running costs a process its life.

    Attributes:
        watched_s: Time as counted here.
    """

    def __init__(self, settings: LivenessSettings) -> None:
        self._settings = settings
        self._lives: dict[Generation, _Life] = {}
        self._looked_s: float | None = None
        self.watched_s = 0.0

    def born(self, generation: Generation, *, computes_on_cpu: bool = False) -> None:
        """Begin to judge a process. Its silence counts from its first heartbeat on."""
        self._lives[generation] = _Life(computes_on_cpu=computes_on_cpu)

    def killed(self, generation: Generation) -> None:
        """Take note that a process was sent SIGKILL."""
        if (life := self._lives.get(generation)) is not None and life.killed_s is None:
            life.killed_s = self.watched_s

    def ending(self, generation: Generation) -> None:
        """Take note that a process was told to end: it is silent now, and is killed in time."""
        if (life := self._lives.get(generation)) is not None:
            life.is_ending = True

    def gone(self, generation: Generation) -> None:
        """Forget a process that has ended."""
        self._lives.pop(generation, None)

    def beat(
        self, generation: Generation, *, next_s: float, steps: int = 0, num_requests: int = 0
    ) -> None:
        """Take a heartbeat, with an engine's counters where there is an engine.

        Silence counts from ``next_s`` on, less a heartbeat's usual time.
        """
        life = self._lives.get(generation)
        if life is None:
            return
        life.heard_s, life.quiet_s = self.watched_s + max(0.0, next_s - USUAL_BEAT_S), 0.0
        if steps != life.steps or not life.has_work or not num_requests:
            if life.has_work and steps != life.steps:
                life.durations_s.append(self.watched_s - life.step_began_s)
            life.steps, life.step_s, life.step_began_s = steps, 0.0, self.watched_s
        life.has_work = num_requests > 0

    def is_quiet(self, generation: Generation) -> bool:
        """Whether the next look must tell a process that waits from one that is kept waiting."""
        life = self._lives.get(generation)
        if life is None or life.heard_s is None:
            return False
        return self.watched_s - life.heard_s > self._settings.silent_s / 2

    def busy_s(self, generation: Generation) -> float:
        """Return for how long a process has computed, or waited for a CPU, since it was born."""
        life = self._lives.get(generation)
        return 0.0 if life is None else life.busy_s

    def look(self, seen: dict[Generation, Sight], *, now_s: float) -> Iterator[Verdict | Held]:
        """Judge everybody seen, each at most once dead and once held.

        Args:
            seen: What the kernel shows; who is not in it is left alone.
            now_s: When.
        """
        passed_s = 0.0
        if self._looked_s is not None:
            passed_s = min(max(0.0, now_s - self._looked_s), MAX_LOOK_S)
        self._looked_s = now_s
        self.watched_s += passed_s
        for generation, sight in seen.items():
            life = self._lives.get(generation)
            if life is None or life.is_reported:
                continue
            if life.killed_s is not None:
                yield from self._look_at_killed(generation, life, sight)
                continue
            if life.is_ending:
                continue
            cause = self._judge(life, sight, passed_s)
            if cause is not None:
                life.killed_s = self.watched_s
                yield Verdict(generation, cause)

    def _look_at_killed(
        self, generation: Generation, life: _Life, sight: Sight
    ) -> Iterator[Verdict | Held]:
        if life.killed_s is None or self.watched_s - life.killed_s < HELD_AFTER_S:
            return
        life.is_reported = True
        how = "in uninterruptible sleep" if sight.is_held else "for another reason"
        yield Held(
            generation,
            f"was killed and does not end: the kernel holds it {how}; what it used, its GPUs too, "
            "stays out of use until it is gone",
        )

    def _judge(self, life: _Life, sight: Sight, passed_s: float) -> str | None:
        used_s, life.cpu_s = sight.cpu_s - life.cpu_s, sight.cpu_s
        life.is_busy = used_s > BUSY_CORES * passed_s
        if life.is_busy or sight.is_runnable:
            life.busy_s += passed_s
        if not sight.is_stopped:
            life.stopped_s = None
        elif life.stopped_s is None:
            life.stopped_s = self.watched_s
        if life.stopped_s is not None:
            stopped_s = self.watched_s - life.stopped_s
            if stopped_s >= self._settings.stopped_s:
                return f"was stopped by a signal or a debugger for {stopped_s:.2g} s"
        return self._judge_silence(life, sight, passed_s) or self._judge_step(life, passed_s)

    def _judge_silence(self, life: _Life, sight: Sight, passed_s: float) -> str | None:
        """Silence counts in full while nothing runs; one kept waiting is given longer."""
        if life.heard_s is None:
            return None
        silent_s = self.watched_s - life.heard_s
        if silent_s > 0 and not (life.is_busy or sight.is_runnable or sight.is_held):
            life.quiet_s += passed_s
        if life.quiet_s >= self._settings.silent_s:
            return f"has said nothing for {silent_s:.2g} s and did nothing meanwhile"
        if silent_s >= self._longest_step_s(life):
            return f"has said nothing for {silent_s:.3g} s"
        return None

    def _judge_step(self, life: _Life, passed_s: float) -> str | None:
        if not life.has_work:
            return None
        computes = life.computes_on_cpu and life.is_busy
        life.step_s += passed_s / BUSY_FACTOR if computes else passed_s
        if life.step_s <= self._settings.step_s or life.step_s <= self._longest_step_s(life):
            return None
        step_s = self.watched_s - life.step_began_s
        return f"has work and has not finished a step for {step_s:.3g} s"

    def _longest_step_s(self, life: _Life) -> float:
        if len(life.durations_s) < FIRST_STEPS:
            return max(self._settings.first_step_s, self._settings.step_s)
        ordered = sorted(life.durations_s)
        p99_s = ordered[(len(ordered) * 99) // 100]
        return max(self._settings.step_s, STEP_FACTOR * p99_s)
