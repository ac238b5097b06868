"""What other eviction policies and sizes of the host tier would have made of a log.

The simulation is the host tier itself, with one engine that releases at once what it has found
and publishes at once what it may store.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nodeserve.kv.eviction import make_policy
from nodeserve.kv.host_tier import HostTier, TierConfig
from nodeserve.kv.tier_events import (
    AnswerReservation,
    BlocksLookedUp,
    CallsReleased,
    EngineJoined,
    ReservationAsked,
    SlotsPublished,
)
from nodeserve.kv.tier_log import LOGGED_KEY_BYTES, LogHeader, LogLine, Op
from nodeserve.wire.kv_tier import ABSENT, KEY_BYTES, split_slots

_ENGINE = 1
_PADDING = bytes(KEY_BYTES - LOGGED_KEY_BYTES)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What one policy would have found at one size.

    ``hits`` of ``keys`` that were looked up were in the tier; ``prefix_hits`` of them had every
    block before them there too, which is what an engine can use.
    """

    policy: str
    num_slots: int
    keys: int
    hits: int
    prefix_hits: int
    stores: int
    evictions: int
    listeners: Mapping[str, tuple[int, int]]

    @property
    def hit_rate(self) -> float:
        """The part of looked-up keys that an engine could have used."""
        return self.prefix_hits / self.keys if self.keys else 0.0


class _Replay:
    def __init__(self, policy: str, num_slots: int, quotas: Mapping[str, float]) -> None:
        config = TierConfig(num_slots=num_slots, quotas=quotas, max_writing_share=1.0)
        self.policy = policy
        self.tier = HostTier(config, make_policy(policy, num_slots))
        self.tier.handle(EngineJoined(_ENGINE, "replay"), now_s=0.0)
        self.prefix_hits = 0
        self._call_id = 0

    def take(self, line: LogLine) -> None:
        self._call_id += 1
        keys = b"".join([key + _PADDING for key in line.keys])
        if line.op is Op.LOOK_UP:
            ready = self.tier.table.ready
            for key in line.keys:
                if key + _PADDING not in ready:
                    break
                self.prefix_hits += 1
            look = BlocksLookedUp(_ENGINE, self._call_id, line.listener, keys)
            self.tier.handle(look, now_s=line.at_s)
            self.tier.handle(CallsReleased(_ENGINE, [self._call_id]), now_s=line.at_s)
        elif line.op is Op.STORE:
            parent = line.parent + _PADDING if line.parent else b""
            ask = ReservationAsked(_ENGINE, self._call_id, line.listener, keys, parent)
            answer = self.tier.handle(ask, now_s=line.at_s)[-1]
            if isinstance(answer, AnswerReservation):
                slots = [slot for slot in split_slots(answer.slots) if slot != ABSENT]
                self.tier.handle(SlotsPublished(_ENGINE, slots), now_s=line.at_s)

    def result(self) -> ReplayResult:
        counters, books = self.tier.counters, self.tier.room.books.values()
        return ReplayResult(
            policy=self.policy,
            num_slots=self.tier.table.num_slots,
            keys=counters.keys,
            hits=counters.hits,
            prefix_hits=self.prefix_hits,
            stores=counters.stores,
            evictions=sum(book.evictions for book in books),
            listeners={book.name: (book.hits, book.hits + book.misses) for book in books},
        )


def replay(
    log: Iterable[LogHeader | LogLine],
    policies: Sequence[str],
    sizes: Sequence[int],
    quotas: Mapping[str, float],
) -> list[ReplayResult]:
    """Return what each policy would have found at each size, in slots.

    ``log`` is read once. Evictions in it are those of the policy that wrote it, and are left out.

    Raises:
        ConfigError: There is no such policy.
    """
    replays = [_Replay(policy, size, quotas) for size in sizes for policy in policies]
    for entry in log:
        if isinstance(entry, LogLine):
            for one in replays:
                one.take(entry)
    return [one.result() for one in replays]
