"""Shared by the tests of the host tier: keys that can be told apart, and one engine's requests."""

import hashlib

from nodeserve.kv.host_tier import HostTier, TierConfig
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AnswerReservation,
    BlocksLookedUp,
    CallsReleased,
    EngineJoined,
    ReservationAsked,
    SlotsPublished,
)
from nodeserve.wire.kv_tier import ABSENT, split_slots


def key(name) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def keys(*names) -> bytes:
    return b"".join(key(name) for name in names)


def take_over(tier, slots, generations=None, pinned=(), *, now_s=0.0):
    """Let a tier adopt slots, one after another, and serve; return what it says is to be done."""
    commands = [c for slot, found in slots.items() for c in tier.adopt({slot: found})]
    return commands + tier.take_over(generations, pinned, now_s=now_s)


class Talk:
    """Says things to a tier in short, as engines would."""

    def __init__(self, num_slots=8, **config) -> None:
        config = {"max_writing_share": 1.0, **config}
        self.tier = HostTier(TierConfig(num_slots=num_slots, **config))
        self.now_s = 0.0
        self._call_id = 0

    def tell(self, event):
        return self.tier.handle(event, now_s=self.now_s)

    def join(self, *generations) -> None:
        for generation in generations:
            self.tell(EngineJoined(generation, f"w{generation}"))

    def next_call(self) -> int:
        self._call_id += 1
        return self._call_id

    def reserve(self, *names, engine=1, listener="l", parent=None) -> list[int]:
        parent_key = b"" if parent is None else key(parent)
        event = ReservationAsked(engine, self.next_call(), listener, keys(*names), parent_key)
        *_, answer = self.tell(event)
        assert isinstance(answer, AnswerReservation)
        return split_slots(answer.slots)

    def store(self, *names, engine=1, listener="l", parent=None) -> list[int]:
        slots = self.reserve(*names, engine=engine, listener=listener, parent=parent)
        self.tell(SlotsPublished(engine, [slot for slot in slots if slot != ABSENT]))
        return slots

    def look_up(self, *names, engine=1, listener="l", deadline_s=0.0) -> list[int]:
        call_id = self.next_call()
        event = BlocksLookedUp(engine, call_id, listener, keys(*names), deadline_s)
        *_, answer = self.tell(event)
        assert isinstance(answer, AnswerLookup)
        return split_slots(answer.slots)

    def release(self, call_id=None, engine=1) -> None:
        self.tell(CallsReleased(engine, [self._call_id if call_id is None else call_id]))

    def has(self, *names) -> list[bool]:
        return [key(name) in self.tier.table.ready for name in names]
