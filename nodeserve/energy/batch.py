"""Who is in an engine's batch, and what each has caused in the steps since it came.

In a step a member causes ``equal + compute * f + memory * b`` seconds of the step's time, with the
same three numbers for all; ``f`` and ``b`` are linear in its context, which grows by its tokens
with every step. So the sums over steps of the three, and of the last two times the number of the
step, say what any member has caused: a step costs the same however many members there are, and a
member is looked at only when it comes and when it goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nodeserve.energy.step_cost import MAX_ATOMS, Rates, step_cost
from nodeserve.wire.accounting import Member


class Caused(NamedTuple):
    """What a leg has caused: seconds of steps, and at the device's peaks of computing and memory.

    The first are of the time that steps took; the others say what was done in it.
    """

    step_s: float = 0.0
    compute_s: float = 0.0
    memory_s: float = 0.0

    def plus(self, other: "Caused") -> "Caused":
        """Return the sum of both."""
        return Caused(
            self.step_s + other.step_s,
            self.compute_s + other.compute_s,
            self.memory_s + other.memory_s,
        )

    def times(self, factor: float) -> "Caused":
        """Return so many times as much."""
        return Caused(self.step_s * factor, self.compute_s * factor, self.memory_s * factor)


@dataclass(slots=True)
class _Sums:
    """Over all steps: their number, and over those that count what members cause in each.

    ``counted`` is how many count, ``parts`` what one of them bears of the weights' reading. What
    ends in ``_steps`` is multiplied by each step's number.
    """

    steps: float = 0.0
    counted: float = 0.0
    counted_steps: float = 0.0
    parts: float = 0.0
    equal: float = 0.0
    compute: float = 0.0
    compute_steps: float = 0.0
    memory: float = 0.0
    memory_steps: float = 0.0


@dataclass(slots=True)
class _Seat:
    """A member, its context at step 0 of the sums, and the sums when it came."""

    tokens: int
    origin: float
    since: _Sums


class Batch:
    """The members of one engine's batch. ``caused`` gathers what legs have caused."""

    def __init__(self, rates: Rates) -> None:
        self.caused: dict[str, Caused] = {}
        self._rates = rates
        self._sums = _Sums()
        self._seats: dict[str, _Seat] = {}
        # Over all members: tokens, their own pairs, origins, tokens * origin, tokens ** 2.
        self._tokens = 0
        self._own_pairs = 0.0
        self._origins = 0.0
        self._pairs = 0.0
        self._squares = 0

    def __len__(self) -> int:
        return len(self._seats)

    def join(self, member: Member) -> None:
        """Let a member in; one that is in already has another context from now on."""
        self.leave(member.leg_id)
        origin = member.context - member.tokens * self._sums.steps
        self._seats[member.leg_id] = _Seat(member.tokens, origin, replace(self._sums))
        self._add(member.tokens, origin, 1)

    def leave(self, leg_id: str) -> None:
        """Let a member go, and gather what it has caused; nothing for one that is not in."""
        seat = self._seats.pop(leg_id, None)
        if seat is not None:
            self._gather(leg_id, seat)
            self._add(seat.tokens, seat.origin, -1)

    def run(
        self, num_steps: float, step_s: float, once: Sequence[Member] = (), *, counted: float = 1.0
    ) -> None:
        """Take in like steps.

        Args:
            num_steps: How many, or which part of some.
            step_s: How long one took.
            once: Who computed in each of them beside the batch.
            counted: 0 to let contexts grow only, 1 to count too.
        """
        count = len(self._seats) + len(once)
        if not count or num_steps <= 0:
            return
        rates, sums = self._rates, self._sums
        # In the middle of these steps; the first one's contexts are those of now.
        middle = sums.steps + (num_steps - 1) / 2
        compute_s, memory_s = self._seconds(middle)
        chunks = [seconds_of(rates, member) for member in once]
        atoms = chunks if len(chunks) <= MAX_ATOMS else []
        cost = step_cost(
            compute_s + sum(f for f, _ in chunks),
            memory_s + sum(b for _, b in chunks),
            count,
            weights_s=rates.weights_s,
            step_s=step_s,
            atoms=atoms,
        )
        part_s = rates.weights_s / count
        weighed = num_steps * counted
        if weighed:
            shares = cost.atoms or [
                cost.equal + cost.compute * f + cost.memory * b for f, b in chunks
            ]
            for member, (f, b), step_share_s in zip(once, chunks, shares, strict=True):
                self._cause(member.leg_id, Caused(step_share_s, f, b + part_s).times(weighed))
        sums.counted += weighed
        sums.counted_steps += weighed * middle
        sums.parts += weighed * part_s
        sums.equal += weighed * cost.equal
        sums.compute += weighed * cost.compute
        sums.compute_steps += weighed * cost.compute * middle
        sums.memory += weighed * cost.memory
        sums.memory_steps += weighed * cost.memory * middle
        sums.steps += num_steps

    def gather(self) -> None:
        """Gather what all members have caused so far; they stay."""
        members = [
            (leg_id, seat.tokens, seat.origin + seat.tokens * self._sums.steps)
            for leg_id, seat in self._seats.items()
        ]
        for leg_id, seat in self._seats.items():
            self._gather(leg_id, seat)
        self._seats.clear()
        self._sums = _Sums()  # small again: differences of large sums are not exact
        self._tokens = self._squares = 0
        self._own_pairs = self._origins = self._pairs = 0.0
        for leg_id, tokens, context in members:
            self._seats[leg_id] = _Seat(tokens, context, _Sums())
            self._add(tokens, context, 1)

    def _gather(self, leg_id: str, seat: _Seat) -> None:
        now, since = self._sums, seat.since
        counted = now.counted - since.counted
        if counted <= 0:
            return
        f, b = self._over(seat, counted, now.counted_steps - since.counted_steps)
        by_f, _ = self._over(
            seat, now.compute - since.compute, now.compute_steps - since.compute_steps
        )
        _, by_b = self._over(seat, now.memory - since.memory, now.memory_steps - since.memory_steps)
        step_s = now.equal - since.equal + by_f + by_b
        memory_s = b + now.parts - since.parts
        # Differences of sums may fall a rounding below 0.
        self._cause(leg_id, Caused(max(step_s, 0.0), max(f, 0.0), max(memory_s, 0.0)))

    def _over(self, seat: _Seat, factor: float, factor_steps: float) -> tuple[float, float]:
        """Return a member's seconds of computing and of memory, over steps with such factors."""
        rates, tokens = self._rates, seat.tokens
        contexts = seat.origin * factor + tokens * factor_steps
        own = tokens * (rates.token_s + rates.pair_s * (tokens + 1) / 2) * factor
        return own + tokens * rates.pair_s * contexts, rates.kv_s * (tokens * factor + contexts)

    def _cause(self, leg_id: str, caused: Caused) -> None:
        before = self.caused.get(leg_id)
        self.caused[leg_id] = caused if before is None else before.plus(caused)

    def _seconds(self, step: float) -> tuple[float, float]:
        """Return the seconds of computing and of memory of all members in a step."""
        rates = self._rates
        contexts = self._origins + step * self._tokens
        pairs = self._pairs + step * self._squares + self._own_pairs
        compute_s = rates.token_s * self._tokens + rates.pair_s * pairs
        return max(compute_s, 0.0), max(rates.kv_s * (contexts + self._tokens), 0.0)

    def _add(self, tokens: int, origin: float, sign: int) -> None:
        self._tokens += sign * tokens
        self._own_pairs += sign * tokens * (tokens + 1) / 2
        self._origins += sign * origin
        self._pairs += sign * tokens * origin
        self._squares += sign * tokens * tokens


def seconds_of(rates: Rates, member: Member) -> tuple[float, float]:
    """Return a member's seconds of computing and of memory in one step."""
    tokens, context = member.tokens, member.context
    pairs = tokens * (context + (tokens + 1) / 2)
    return rates.token_s * tokens + rates.pair_s * pairs, rates.kv_s * (context + tokens)
