"""What has been said of requests and is not booked yet, and what may be acknowledged.

Whoever notes requests numbers its messages and keeps them until they are acknowledged. When the
ledger has begun anew it asks for all of them again; messages that were under way by then come
before those, out of order. So for a while after it has asked it acknowledges nothing beyond what
it has without a gap. That the same is booked twice does no harm: a request starts and ends once.
"""

from collections.abc import Mapping
from typing import Final

from nodeserve.wire.accounting import RequestsNoted

MAX_NOTES: Final = 4096
"""Messages that wait to be booked; further ones are not heard, and asked for again later."""

IN_ORDER_AFTER_S: Final = 2.0
"""So long after it was asked, whatever a sender said before that has come."""


class NotesInbox:
    """Messages of every generation that notes requests."""

    def __init__(self, booked: Mapping[int, int]) -> None:
        """Begin with what is booked of each generation."""
        self._booked = dict(booked)
        self._notes: list[RequestsNoted] = []
        self._in_order_s: dict[int, float] = {}
        self._taken: dict[int, set[int]] = {}
        self._unheard: set[int] = set()

    @property
    def generations(self) -> list[int]:
        """Who has noted requests, in order."""
        return sorted(self._in_order_s)

    def take(self, noted: RequestsNoted, *, now_s: float) -> bool:
        """Take in a message, and return whether its sender is to be asked for all it keeps."""
        generation, seq = noted.generation, noted.seq
        booked = self._booked.get(generation, 0)
        taken = self._taken.setdefault(generation, set())
        is_new = generation not in self._in_order_s
        in_order_s = self._in_order_s.setdefault(generation, now_s)
        # What is missing was said to a predecessor of ours, or has been given up. One that is new
        # to us may have said more to it than we can see from this message.
        has_gap = seq > max(taken, default=booked) + 1
        asks = (is_new and seq > 1) or (has_gap and now_s >= in_order_s)
        if asks:
            self._in_order_s[generation] = now_s + IN_ORDER_AFTER_S
        if seq <= booked or seq in taken:
            return asks
        if len(self._notes) >= MAX_NOTES or generation in self._unheard:
            self._unheard.add(generation)
            return False
        self._notes.append(noted)
        taken.add(seq)
        return asks

    def take_all(self) -> tuple[RequestsNoted, ...]:
        """Return what is to be booked next; it is not returned again."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def due(self, *, now_s: float) -> dict[int, int]:
        """Return up to which message each generation is booked when all that was taken is."""
        due = {}
        for generation, taken in self._taken.items():
            seq = booked = self._booked.get(generation, 0)
            if generation not in self._unheard and now_s >= self._in_order_s[generation]:
                seq = max(taken, default=booked)
            while seq + 1 in taken:
                seq += 1
            if seq > booked:
                due[generation] = seq
        return due

    def booked(self, seqs: Mapping[int, int]) -> None:
        """Take note of what is on disk now."""
        for generation, seq in seqs.items():
            last = self._booked[generation] = max(seq, self._booked.get(generation, 0))
            taken = self._taken.get(generation)
            if taken:
                taken -= {number for number in taken if number <= last}

    def deaf_to(self, *, now_s: float) -> list[int]:
        """Return who was not heard for want of room and is to be asked, now that there is some."""
        if len(self._notes) >= MAX_NOTES:
            return []
        asked = sorted(self._unheard)
        for generation in asked:
            self._in_order_s[generation] = now_s + IN_ORDER_AFTER_S
        self._unheard.clear()
        return asked

    def last_booked(self, generation: int) -> int:
        """Return the last message of a generation that is booked; 0 for none."""
        return self._booked.get(generation, 0)
