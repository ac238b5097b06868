"""What the simulated engine's planned step computes, for whom, and who comes and goes."""

from collections.abc import Sequence as Many

from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.perf_model.latency import StepWork
from nodeserve.wire.accounting import Member


class Unrecorded:
    """For an engine whose steps nobody accounts for."""

    def enter(self, sequence: Sequence) -> None:
        """A prefill is complete: its request decodes from the next step on."""

    def leave(self, sequence: Sequence) -> None:
        """A decoding request ended, was aborted or lost its blocks."""

    def take(self) -> tuple[Many[Member], Many[str]]:
        """Return who has entered and who has left since the last call."""
        return (), ()


class BatchChanges(Unrecorded):
    """Keeps the changes, which cost as much as there are."""

    def __init__(self) -> None:
        self._entered: dict[str, Member] = {}
        self._left: list[str] = []

    def enter(self, sequence: Sequence) -> None:
        """A prefill is complete: its request decodes from the next step on."""
        leg_id = sequence.request_id
        # The token that is known last is the one that the next step computes.
        self._entered[leg_id] = Member(leg_id, 1, sequence.num_tokens - 1)

    def leave(self, sequence: Sequence) -> None:
        """A decoding request ended, was aborted or lost its blocks."""
        if self._entered.pop(sequence.request_id, None) is None:
            self._left.append(sequence.request_id)

    def take(self) -> tuple[Many[Member], Many[str]]:
        """Return who has entered and who has left since the last call."""
        if not self._entered and not self._left:
            return (), ()
        entered, self._entered = list(self._entered.values()), {}
        left, self._left = self._left, []
        return entered, left


def chunks_of(prefilling: Many[Sequence]) -> list[Member]:
    """Return which pieces of prompts the planned step computes."""
    return [Member(s.request_id, s.chunk, s.computed) for s in prefilling if s.chunk]


def work_of(prefilling: Many[Sequence], decoding: Many[Sequence]) -> StepWork:
    """Return what the planned step computes."""
    return StepWork(
        prefill_tokens=sum(s.chunk for s in prefilling),
        prefill_pairs=sum(s.chunk * (s.computed + s.chunk / 2) for s in prefilling),
        decoding=len(decoding),
        context_tokens=sum(s.num_tokens for s in decoding),
    )
