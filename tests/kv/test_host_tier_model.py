"""Random conversations with the host tier, whose books must agree after every event."""

import collections
import itertools
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodeserve.kv.eviction import make_policy
from nodeserve.kv.host_tier import HostTier, TierConfig
from nodeserve.kv.slot_table import FoundSlot, SlotPhase
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AnswerReservation,
    AskDisk,
    BlocksLookedUp,
    CallsReleased,
    DiskAsked,
    DropBlock,
    EngineGone,
    EngineJoined,
    ReadFromDisk,
    ReadFromDiskEnded,
    ReservationAsked,
    ShowSlot,
    SlotsAbandoned,
    SlotsPublished,
    TimeElapsed,
    WriteToDisk,
    WriteToDiskEnded,
)
from nodeserve.wire.kv_tier import ABSENT, split_keys, split_slots
from tests.kv.tiers import key, keys, take_over

NUM_SLOTS = 10
CHAINS = [[f"{name}{depth}" for depth in range(6)] for name in "ab"] + [["a0", "a1", "c2", "c3"]]
PARENTS = {
    key(name): key(chain[at - 1]) if at else None
    for chain in CHAINS
    for at, name in enumerate(chain)
}
ENGINES = st.integers(1, 3)
LISTENERS = st.sampled_from(["free", "bound"])
PREFIXES = st.builds(lambda chain, end: chain[:end], st.sampled_from(CHAINS), st.integers(1, 6))


class Conversation(RuleBasedStateMachine):
    """What everybody outside has been told: slots shown, written and read by whom."""

    @initialize(policy=st.sampled_from(["lru", "2q"]), disk=st.booleans())
    def begin(self, policy, disk) -> None:
        self.policy, self.disk = policy, disk
        self.now_s = 0.0
        self.calls = itertools.count(1)
        self.told = collections.Counter()
        self.woken = 0
        self.links: dict[int, int] = {}
        self.shown: dict[int, tuple] = {}
        self.quarantined_s: dict[int, float] = {}
        self.on_disk: set[bytes] = set()
        self.reads: dict[int, bytes] = {}
        self.writes: dict[int, bytes] = {}
        self.engines: dict[int, dict] = {}
        self.open_tier()
        for generation in (1, 2):
            self.join(generation=generation)

    def open_tier(self) -> None:
        config = TierConfig(
            num_slots=NUM_SLOTS, quotas={"bound": 0.3}, max_disk_reads=3, max_disk_writes=2
        )
        self.tier = HostTier(config, make_policy(self.policy, NUM_SLOTS))
        self.tier.disk_works = self.disk

    def tell(self, event) -> None:
        self.told[type(event)] += 1
        self.obey(self.tier.handle(event, now_s=self.now_s))

    def obey(self, commands) -> None:
        for command in commands:
            self.told[type(command)] += 1
            match command:
                case ShowSlot(slot, phase, block, tenant, parent):
                    self.show(slot, phase, block, tenant, parent)
                case DropBlock(slot, _, _):
                    assert self.shown[slot][0] is SlotPhase.READY
                    assert slot not in self.links.values(), "went before what follows it"
                    self.show(slot, SlotPhase.FREE, b"", 0, b"")
                case AnswerReservation(generation, _, slots):
                    written = [slot for slot in split_slots(slots) if slot != ABSENT]
                    assert not self.written() & set(written)
                    self.engines[generation]["writing"] |= set(written)
                case AnswerLookup(generation, call_id, slots, _):
                    self.engines[generation]["reading"][call_id] = self.found(
                        generation, call_id, split_slots(slots)
                    )
                case AskDisk(generation, call_id, missing):
                    self.tell(
                        DiskAsked(generation, call_id, [k for k in missing if k in self.on_disk])
                    )
                case ReadFromDisk(slot, block):
                    assert slot not in self.reads
                    self.reads[slot] = block
                case WriteToDisk(slot, block):
                    self.writes[slot] = block
                case _:
                    self.woken += 1

    def show(self, slot, phase, block, tenant, parent_key) -> None:
        before = self.shown.get(slot, (SlotPhase.FREE,))[0]
        if before is SlotPhase.READY:
            assert slot not in self.read(), "changed under a reader"
            assert slot not in self.writes, "changed under disk"
        if phase is SlotPhase.QUARANTINED:
            self.quarantined_s[slot] = self.now_s
        if before is SlotPhase.QUARANTINED and phase is SlotPhase.FREE:
            assert self.now_s - self.quarantined_s[slot] >= 2.0
        self.shown[slot] = (phase, block, tenant, parent_key)
        if phase is SlotPhase.RESERVED and before is SlotPhase.FREE:
            present = (SlotPhase.READY, SlotPhase.RESERVED)
            places = {e[1]: place for place, e in self.shown.items() if e[0] in present}
            if (parent := PARENTS[block]) in places:
                self.links[slot] = places[parent]
        elif phase is not SlotPhase.READY:
            self.links.pop(slot, None)
        if phase is SlotPhase.FREE:
            self.links = {child: parent for child, parent in self.links.items() if parent != slot}

    def found(self, generation, call_id, slots) -> list[tuple[int, bytes]]:
        asked = self.engines[generation]["asked"][call_id]
        found = [(s, k) for s, k in zip(slots, asked, strict=True) if s != ABSENT]
        for slot, block in found:
            assert self.shown[slot][:2] == (SlotPhase.READY, block)
        return found

    def written(self) -> set[int]:
        return set().union(self.reads, *(e["writing"] for e in self.engines.values()))

    def read(self) -> set[int]:
        calls = [found for e in self.engines.values() for found in e["reading"].values()]
        return {slot for found in calls for slot, _ in found}

    @rule(generation=ENGINES)
    def join(self, generation) -> None:
        if generation not in self.engines:
            self.engines[generation] = {"asked": {}, "reading": {}, "writing": set()}
            self.tell(EngineJoined(generation, f"w{generation}"))

    @rule(generation=ENGINES)
    def die(self, generation) -> None:
        if self.engines.pop(generation, None) is not None:
            self.tell(EngineGone(generation))

    @rule(generation=ENGINES, names=PREFIXES, listener=LISTENERS, patience_s=st.integers(0, 3))
    def look_up(self, generation, names, listener, patience_s) -> None:
        if generation in self.engines:
            call_id = next(self.calls)
            joined = keys(*names)
            self.engines[generation]["asked"][call_id] = split_keys(joined)
            deadline_s = self.now_s + patience_s
            self.tell(BlocksLookedUp(generation, call_id, listener, joined, deadline_s))

    @rule(generation=ENGINES, oldest=st.booleans())
    def release(self, generation, oldest) -> None:
        engine = self.engines.get(generation)
        if engine and engine["asked"]:
            call_id = min(engine["asked"]) if oldest else max(engine["asked"])
            del engine["asked"][call_id]
            engine["reading"].pop(call_id, None)
            self.tell(CallsReleased(generation, [call_id]))

    @rule(generation=ENGINES, names=PREFIXES, listener=LISTENERS, skip=st.integers(0, 3))
    def reserve(self, generation, names, listener, skip) -> None:
        if generation in self.engines:
            parent = key(names[skip - 1]) if 0 < skip <= len(names) else b""
            joined = keys(*names[skip:])
            self.tell(ReservationAsked(generation, next(self.calls), listener, joined, parent))

    @rule(generation=ENGINES, most=st.integers(1, 6), publish=st.booleans())
    def finish(self, generation, most, publish) -> None:
        engine = self.engines.get(generation)
        if engine and engine["writing"]:
            slots = sorted(engine["writing"])[:most]
            engine["writing"] -= set(slots)
            event = SlotsPublished if publish else SlotsAbandoned
            self.tell(event(generation, slots))

    @rule(done=st.booleans())
    def end_read(self, done) -> None:
        if self.reads:
            slot, block = self.reads.popitem()
            assert self.shown[slot][:2] == (SlotPhase.RESERVED, block)
            self.tell(ReadFromDiskEnded(slot, done=done))

    @rule(done=st.booleans())
    def end_write(self, done) -> None:
        if self.writes:
            slot, block = self.writes.popitem()
            assert self.shown[slot][:2] == (SlotPhase.READY, block)
            if done:
                self.on_disk.add(block)
            self.tell(WriteToDiskEnded(slot))

    @rule(by_s=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, by_s) -> None:
        self.now_s += by_s
        self.tell(TimeElapsed())

    @rule(number=st.integers(0, 9))
    def pin_or_unpin(self, number) -> None:
        ready = sorted(self.tier.table.ready)
        if number < len(ready) and not self.tier.pinned.held:
            chain = self.tier.table.chain_to(self.tier.table.ready[ready[number]])
            if len(chain) <= NUM_SLOTS // 2:
                self.tier.pinned.pin(ready[number].hex())
        else:
            self.tier.pinned.unpin_all()

    @rule(listener=st.sampled_from(["free", "bound", None]))
    def clear(self, listener) -> None:
        self.obey(self.tier.clear(listener, 4)[0])

    @rule()
    def restart(self) -> None:
        """Let a successor begin from what was shown, and engines say what they hold."""
        left = {slot: FoundSlot(*entry) for slot, entry in self.shown.items()}
        pinned = self.tier.pinned.keys
        self.reads, self.writes = {}, {}
        self.open_tier()
        known = frozenset(self.engines)
        self.obey(take_over(self.tier, left, known, pinned, now_s=self.now_s))
        assert self.tier.pinned.keys == pinned
        for generation, engine in self.engines.items():
            reading = [slot for found in engine["reading"].values() for slot, _ in found]
            writing = sorted(engine["writing"])
            self.tier.check()
            names = [left[slot].key for slot in writing]
            self.tell(EngineJoined(generation, "w", reading, writing, names))
            engine["reading"] = {0: [(slot, b"") for slot in reading]}
            engine["asked"] = {0: []}
            assert engine["writing"] == self.tier.engines[generation].writing

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "tier"):
            return
        self.tier.check()
        table = self.tier.table
        for slot in range(NUM_SLOTS):
            phase = self.shown.get(slot, (SlotPhase.FREE,))[0]
            assert phase is table.phases[slot]
        books = self.tier.room.books.values()
        assert all(book.slots <= book.max_slots for book in books)
        for slot in table.ready.values():
            parent = table.parent_of(slot)
            assert parent == -1 or table.phases[parent] is not SlotPhase.FREE


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestConversation = Conversation.TestCase


def say_something(talk, source) -> None:
    generation, listener = source.randint(1, 3), source.choice(["free", "bound"])
    names = source.choice(CHAINS)[: source.randint(1, 6)]
    likely = [
        lambda: talk.look_up(generation, names, listener, source.randint(0, 3)),
        lambda: talk.reserve(generation, names, listener, source.randint(0, 3)),
        lambda: talk.finish(generation, source.randint(1, 6), source.random() < 0.8),
        lambda: talk.release(generation, source.random() < 0.5),
        lambda: talk.end_read(source.random() < 0.8),
        lambda: talk.end_write(source.random() < 0.8),
    ]
    unlikely = [
        lambda: talk.join(generation),
        lambda: talk.die(generation),
        lambda: talk.wait(source.choice([0.5, 1.0, 3.0])),
        lambda: talk.pin_or_unpin(source.randint(0, 9)),
        lambda: talk.clear(source.choice(["free", "bound", None])),
        talk.restart,
    ]
    source.choice(likely if source.random() < 0.85 else unlikely)()


@pytest.mark.parametrize(("policy", "disk"), [*itertools.product(["lru", "2q"], [True, False])])
def test_books_agree_after_every_event_of_long_conversations(policy, disk) -> None:
    source = random.Random(f"{policy} {disk}")
    talk = Conversation()
    talk.begin(policy=policy, disk=disk)
    for _ in range(3000):
        say_something(talk, source)
        talk.books_agree()
    evictions = talk.told[DropBlock]
    assert evictions > 50
    assert talk.told[ReadFromDiskEnded] > 10 or not disk
