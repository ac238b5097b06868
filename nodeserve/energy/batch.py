"""Who is in an engine's batch, and what each has weighed in the steps since it came.

In a step a member weighs ``equal + compute * f + memory * b``, with the same three numbers for
all; ``f`` and ``b`` are linear in its context, which grows by its tokens with every step. So the
sums over steps of the three, and of the last two times the number of the step, say what any
member has weighed: a step costs the same however many members there are, and a member is looked
at only when it comes and when it goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nodeserve.energy.step_cost import MAX_ATOMS, Rates, step_cost
from nodeserve.wire.accounting import Member


@dataclass(slots=True)
class _Sums:
    """Over all steps: the three numbers, the last two times the step's number, and that."""

    steps: float = 0.0
    equal: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    compute_steps: float = 0.0
    memory_steps: float = 0.0


@dataclass(slots=True)
class _Seat:
    """A member, its context at step 0 of the sums, and the sums when it came."""

    tokens: int
    origin: float
    since: _Sums


class Batch:
    """The members of one engine's batch. ``weights`` gathers what legs have weighed.

    Weights are in seconds of a busy device's own draw; see ``step_cost``.
    """

    def __init__(self, rates: Rates) -> None:
        self.weights: dict[str, float] = {}
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
        sums = self._sums
        origin = member.context - member.tokens * sums.steps
        since = _Sums(
            sums.steps,
            sums.equal,
            sums.compute,
            sums.memory,
            sums.compute_steps,
            sums.memory_steps,
        )
        self._seats[member.leg_id] = _Seat(member.tokens, origin, since)
        self._add(member.tokens, origin, 1)

    def leave(self, leg_id: str) -> None:
        """Let a member go, and gather what it has weighed; nothing for one that is not in."""
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
            counted: 0 to let contexts grow only, 1 to weigh too.
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
        weighed = num_steps * counted
        if weighed:
            weights = cost.atoms or [
                cost.equal + cost.compute * f + cost.memory * b for f, b in chunks
            ]
            for member, weight in zip(once, weights, strict=True):
                leg_id = member.leg_id
                self.weights[leg_id] = self.weights.get(leg_id, 0.0) + weight * weighed
        sums.equal += weighed * cost.equal
        sums.compute += weighed * cost.compute
        sums.memory += weighed * cost.memory
        sums.compute_steps += weighed * cost.compute * middle
        sums.memory_steps += weighed * cost.memory * middle
        sums.steps += num_steps

    def gather(self) -> None:
        """Gather what all members have weighed so far; they stay."""
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
        now, since, rates, tokens = self._sums, seat.since, self._rates, seat.tokens
        compute = now.compute - since.compute
        memory = now.memory - since.memory
        compute_contexts = seat.origin * compute
        compute_contexts += tokens * (now.compute_steps - since.compute_steps)
        memory_contexts = seat.origin * memory
        memory_contexts += tokens * (now.memory_steps - since.memory_steps)
        weight = now.equal - since.equal
        weight += tokens * (rates.token_s + rates.pair_s * (tokens + 1) / 2) * compute
        weight += tokens * rates.pair_s * compute_contexts
        weight += rates.kv_s * (tokens * memory + memory_contexts)
        if weight > 0:
            self.weights[leg_id] = self.weights.get(leg_id, 0.0) + weight

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
