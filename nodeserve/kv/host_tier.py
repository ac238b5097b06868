"""The host tier: which slot holds which block, who reads and writes it, and what makes room.

All of it is decided here, by events and commands, in the order in which they come. That order is
the safety argument: what a slot holds is shown in the directory before anybody is told of the
slot, and while anybody may read or write a slot it is never given to anybody else.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.kv.adoption import Adoption
from nodeserve.kv.eviction import EvictionPolicy, Lru
from nodeserve.kv.pinned_prefixes import PinnedPrefixes
from nodeserve.kv.promotions import Promotions
from nodeserve.kv.quarantine import Quarantine
from nodeserve.kv.room import Room, tenant_of
from nodeserve.kv.slot_table import DISK, NO_SLOT, FoundSlot, SlotPhase, SlotTable
from nodeserve.kv.tier_counters import TierCounters
from nodeserve.kv.tier_engine import Engine
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AnswerReservation,
    AskDisk,
    BlocksLookedUp,
    CallsReleased,
    Command,
    DiskAsked,
    EngineGone,
    EngineJoined,
    Event,
    ReadFromDiskEnded,
    ReservationAsked,
    SlotsAbandoned,
    SlotsPublished,
    TimeElapsed,
    WriteToDisk,
    WriteToDiskEnded,
    shown_slot,
)
from nodeserve.kv.top_prefixes import TopPrefixes
from nodeserve.wire.kv_tier import ABSENT, HELLO_CALL, KEY_BYTES


@dataclass(frozen=True, slots=True)
class TierConfig:
    """How much of the host tier may be used for what.

    ``quotas`` bound listeners' shares of it. ``quarantine_s`` is how long after its death a
    process's device may still write. ``adopt_grace_s`` is how long engines that a predecessor
    knew are waited for before anything is evicted. Shares are of all slots: what one engine may
    be writing, and what the operator may pin. An engine may have ``max_calls`` look-ups that it
    has not released.
    """

    num_slots: int
    quotas: Mapping[str, float] = field(default_factory=dict)
    quarantine_s: float = 2.0
    adopt_grace_s: float = 10.0
    max_writing_share: float = 0.5
    max_pinned_share: float = 0.5
    max_calls: int = 4096
    max_disk_reads: int = 256
    max_disk_writes: int = 256


class HostTier:
    """Every slot of the node's host tier.

    Attributes:
        table: The slots.
        room: Whose they are, and what goes first.
        pinned: The operator's pinned prefixes.
        counters: What has happened so far.
        prefixes: What look-ups find most.
        engines: Who uses the tier, by generation.
        disk_works: Whether there is a disk tier at present; whoever runs it says so here.
    """

    def __init__(self, config: TierConfig, policy: EvictionPolicy | None = None) -> None:
        """Begin empty; see ``adopt`` and ``take_over``."""
        self.config = config
        num_slots = config.num_slots
        self.table = SlotTable(num_slots)
        self.room = Room(self.table, policy or Lru(num_slots), config.quotas)
        most = int(config.max_pinned_share * num_slots)
        self.pinned = PinnedPrefixes(self.table, self.room, most)
        self.counters = TierCounters()
        self.prefixes = TopPrefixes()
        self.engines: dict[int, Engine] = {}
        self.disk_works = False
        self._max_writing = max(1, int(config.max_writing_share * num_slots))
        self._adoption = Adoption(self.table, self.room)
        self._quarantine = Quarantine(self.table, self.room, config.quarantine_s)
        self._promotions = Promotions(self.table, self.room, self.counters, config.max_disk_reads)
        self._writing_to_disk: set[int] = set()

    @property
    def is_adopting(self) -> bool:
        """Whether engines that a predecessor knew are still waited for."""
        return not self.room.may_evict

    @property
    def in_use(self) -> bool:
        """Whether an engine, a device or disk may read or write any slot."""
        return bool(
            self.engines
            or self.is_adopting
            or self._quarantine
            or self._promotions
            or self._writing_to_disk
        )

    def adopt(self, slots: Mapping[int, FoundSlot]) -> list[Command]:
        """Take over some of a predecessor's slots; only before any event, then ``take_over``."""
        return self._adoption.take(slots)

    def take_over(
        self, generations: frozenset[int] | None, pinned: Iterable[bytes] = (), *, now_s: float
    ) -> list[Command]:
        """Serve in a predecessor's place, all of whose slots were adopted.

        Args:
            generations: The engines that it knew; None if unknown.
            pinned: The keys of the prefixes that the operator had pinned.
            now_s: When that is.
        """
        self._adoption.end()
        self.pinned.restore(pinned)
        return self._quarantine.adopt(generations, self.config.adopt_grace_s, now_s)

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what the caller must now do, in order.

        Raises:
            InvalidTransitionError: The event is not accepted as things are; nothing has changed.
        """
        match event:
            case BlocksLookedUp():
                return self._look_up(event, now_s)
            case CallsReleased(generation, call_ids):
                self._release(self._engine(generation), call_ids)
                return []
            case ReservationAsked():
                return self._reserve(event)
            case SlotsPublished(generation, slots):
                return self._publish(self._engine(generation), slots)
            case SlotsAbandoned(generation, slots):
                return self._abandon(self._engine(generation), slots)
            case DiskAsked(generation, call_id, keys):
                return self._promotions.begin(self._engine(generation), call_id, keys)
            case ReadFromDiskEnded(slot, done):
                return self._promotions.end(slot, done=done, engines=self.engines)
            case WriteToDiskEnded(slot):
                return self._written_to_disk(slot)
            case EngineJoined():
                return self._join(event, now_s)
            case EngineGone(generation):
                return self._lose(generation, now_s)
            case TimeElapsed():
                commands = self._quarantine.expire(now_s)
                return commands + self._promotions.expire(self.engines, now_s)

    def clear(self, listener: str | None, most: int) -> tuple[list[Command], int]:
        """Evict up to ``most`` blocks that nobody needs, of ``listener`` or of all.

        Returns what to do and how many were evicted; fewer than ``most`` when none is left.
        """
        commands: list[Command] = []
        tenant = None if listener is None else tenant_of(listener)
        return commands, self.room.clear(tenant, most, commands)

    def check(self) -> None:
        """Raise InvariantError unless all books agree."""
        self.table.check()
        self.room.check()
        self.pinned.check()
        pins = [0] * self.table.num_slots
        writers = dict.fromkeys(self._promotions.slots, DISK)
        for generation, engine in self.engines.items():
            for slots in engine.calls.values():
                for slot in slots:
                    pins[slot] += 1
            writers |= dict.fromkeys(engine.writing, generation)
        for slot, phase in enumerate(self.table.phases):
            holds = self.pinned.held.get(slot, 0) + (slot in self._writing_to_disk)
            writer = self.table.writers[slot] if phase is SlotPhase.RESERVED else None
            if (pins[slot], holds, writers.get(slot)) != (
                self.table.pins[slot],
                self.table.holds[slot],
                writer,
            ):
                text = (
                    f"slot {slot}: counted {pins[slot]} pins, {holds} holds, writer "
                    f"{writers.get(slot)}; booked {self.table.pins[slot]}, "
                    f"{self.table.holds[slot]}, {writer}; report this bug"
                )
                raise InvariantError(text)
        self._quarantine.check()
        self._promotions.check(self.engines)

    # ------------------------------------------------------------------------- reading

    def _look_up(self, asked: BlocksLookedUp, now_s: float) -> list[Command]:
        engine, call_id, keys = self._engine(asked.generation), asked.call_id, asked.keys
        if call_id in engine.calls or call_id == HELLO_CALL:
            text = f"engine {asked.generation} has used look-up {call_id} already"
            raise InvalidTransitionError(text)
        tenant, book = self.room.book(asked.listener)
        num_keys = len(keys) // KEY_BYTES
        if len(engine.calls) >= self.config.max_calls:
            self.counters.overruns += 1
            absent = array("I", [ABSENT]) * num_keys
            return [AnswerLookup(asked.generation, call_id, absent.tobytes())]
        get = self.table.ready.get
        parts = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
        found = [get(key, ABSENT) for key in parts]
        held = [slot for slot in found if slot != ABSENT]
        pins = self.table.pins
        for slot in held:
            pins[slot] += 1
        self.room.used(held)
        engine.calls[call_id] = held
        book.hits += len(held)
        book.misses += num_keys - len(held)
        self.counters.lookups += 1
        self.counters.keys += num_keys
        self.counters.hits += len(held)
        depth = num_keys if len(held) == num_keys else found.index(ABSENT)
        if depth:
            self.prefixes.found(parts[depth - 1])
        if depth < num_keys and self.disk_works and asked.deadline_s > now_s:
            missing = [key for key, slot in zip(parts, found, strict=True) if slot == ABSENT]
            self._promotions.ask(engine, call_id, parts, tenant, asked.deadline_s)
            return [AskDisk(asked.generation, call_id, missing)]
        return [AnswerLookup(asked.generation, call_id, array("I", found).tobytes())]

    def _release(self, engine: Engine, call_ids: Iterable[int]) -> None:
        pins, offer = self.table.pins, self.room.offer
        for call_id in call_ids:
            self._promotions.forget(engine, call_id)
            for slot in engine.calls.pop(call_id, ()):
                pins[slot] -= 1
                if not pins[slot]:
                    offer(slot)

    # ------------------------------------------------------------------------- writing

    def _reserve(self, asked: ReservationAsked) -> list[Command]:
        engine, keys = self._engine(asked.generation), asked.keys
        tenant, book = self.room.book(asked.listener)
        table = self.table
        ready, written = table.ready, table.written
        previous = ready.get(asked.parent, written.get(asked.parent, NO_SLOT))
        slots = array("I")
        commands: list[Command] = []
        has_room = True
        for at in range(0, len(keys), KEY_BYTES):
            key = keys[at : at + KEY_BYTES]
            present = ready.get(key, written.get(key, NO_SLOT))
            slot = NO_SLOT
            if present == NO_SLOT:
                if not has_room or len(engine.writing) >= self._max_writing:
                    book.dropped += 1
                else:
                    slot = self.room.take(tenant, commands, parent=previous)
                # Without this block those behind it would never be found.
                has_room = slot != NO_SLOT
            if slot != NO_SLOT:
                writer = asked.generation
                table.reserve(slot, key, tenant=tenant, writer=writer, parent=previous)
                engine.writing.add(slot)
                commands.append(self._shown(slot))
            slots.append(ABSENT if slot == NO_SLOT else slot)
            previous = max(slot, present)
        answer = AnswerReservation(asked.generation, asked.call_id, slots.tobytes())
        return [*commands, answer]

    def _publish(self, engine: Engine, slots: Sequence[int]) -> list[Command]:
        commands: list[Command] = []
        for slot in self._own(engine, slots):
            self.table.publish(slot)
            self.room.stored(slot)
            self.counters.stores += 1
            commands.append(self._shown(slot))
            if not self.disk_works:
                continue
            if len(self._writing_to_disk) < self.config.max_disk_writes:
                self._writing_to_disk.add(slot)
                self.table.holds[slot] += 1
                commands.append(WriteToDisk(slot, self.table.keys[slot]))
            else:
                self.counters.disk_dropped += 1
        return commands

    def _abandon(self, engine: Engine, slots: Sequence[int]) -> list[Command]:
        commands: list[Command] = []
        for slot in self._own(engine, slots):
            tenant = self.table.tenants[slot]
            parent = self.table.abandon(slot)
            self.room.freed(slot, tenant, parent)
            self.counters.refused += 1
            commands.append(self._shown(slot))
        return commands

    def _written_to_disk(self, slot: int) -> list[Command]:
        if slot not in self._writing_to_disk:
            text = f"slot {slot} is not being written to disk"
            raise InvalidTransitionError(text)
        self._writing_to_disk.remove(slot)
        self.table.holds[slot] -= 1
        self.room.offer(slot)
        return []

    # ------------------------------------------------------------------------- engines

    def _join(self, event: EngineJoined, now_s: float) -> list[Command]:
        if event.generation in self.engines:
            return []  # what it holds is known here already
        engine = self.engines[event.generation] = Engine(event.generation, event.worker)
        table, num_slots = self.table, self.table.num_slots
        reading = [slot for slot in event.reading if slot < num_slots]
        held = [slot for slot in reading if table.phases[slot] is SlotPhase.READY]
        for slot in held:
            table.pins[slot] += 1
        if held:
            engine.calls[HELLO_CALL] = held
        commands: list[Command] = []
        for slot, key in zip(event.writing, event.writing_keys, strict=False):
            if slot < num_slots and self._quarantine.may_claim(slot, key):
                table.claim(slot, key, writer=event.generation)
                engine.writing.add(slot)
                self._quarantine.claimed(slot)
                commands.append(self._shown(slot))
            else:
                self.counters.stale += 1
        return commands + self._quarantine.heard_of(event.generation, now_s)

    def _lose(self, generation: int, now_s: float) -> list[Command]:
        engine = self.engines.get(generation)
        commands = self._quarantine.heard_of(generation, now_s)
        if engine is None:
            return commands
        self._release(engine, list(engine.calls))
        del self.engines[generation]
        for slot in sorted(engine.writing):
            parent = self.table.lose_writer(slot)
            if parent != NO_SLOT:
                self.room.offer(parent)
            commands.append(self._shown(slot))
        commands += self._quarantine.add(sorted(engine.writing), now_s)
        return commands

    def _engine(self, generation: int) -> Engine:
        engine = self.engines.get(generation)
        if engine is None:
            text = f"engine {generation} has not said hello"
            raise InvalidTransitionError(text)
        return engine

    def _own(self, engine: Engine, slots: Sequence[int]) -> Iterable[int]:
        """Yield those of ``slots`` that the engine may write, which it then may no more."""
        for slot in slots:
            if slot in engine.writing:
                engine.writing.remove(slot)
                yield slot
            else:
                self.counters.stale += 1

    def _shown(self, slot: int) -> Command:
        return shown_slot(self.table, slot)
