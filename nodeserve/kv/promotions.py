"""Blocks that are being read from disk into the host tier, and the look-ups that wait for them."""

import heapq
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.kv.room import Room
from nodeserve.kv.slot_table import DISK, NO_SLOT, SlotPhase, SlotTable
from nodeserve.kv.tier_counters import TierCounters
from nodeserve.kv.tier_engine import Engine
from nodeserve.kv.tier_events import AnswerLookup, Command, ReadFromDisk, WakeAt, shown_slot
from nodeserve.wire.kv_tier import ABSENT

_Call = tuple[int, int]
"""A look-up: its engine's generation and its number."""


@dataclass(slots=True)
class _Waiting:
    keys: list[bytes]
    tenant: int
    deadline_s: float
    pending: set[int] = field(default_factory=set)


class Promotions:
    """Reads from disk that have not ended; true while there is one.

    Attributes:
        slots: Which slots are being read into, and which look-ups wait for each.
    """

    def __init__(
        self, table: SlotTable, room: Room, counters: TierCounters, max_reads: int
    ) -> None:
        """Have at most ``max_reads`` blocks read at once; more are misses."""
        self.slots: dict[int, set[_Call]] = {}
        self._table = table
        self._room = room
        self._counters = counters
        self._max_reads = max_reads
        self._waiting: dict[_Call, _Waiting] = {}
        self._deadlines: list[tuple[float, _Call]] = []

    def __bool__(self) -> bool:
        return bool(self.slots)

    def ask(
        self, engine: Engine, call_id: int, keys: list[bytes], tenant: int, deadline_s: float
    ) -> None:
        """Remember a look-up while disk is asked what it has."""
        self._waiting[engine.generation, call_id] = _Waiting(keys, tenant, deadline_s)

    def begin(self, engine: Engine, call_id: int, on_disk: Sequence[bytes]) -> list[Command]:
        """Read what a look-up can use of ``on_disk``: up to the first block that is nowhere."""
        call = (engine.generation, call_id)
        waiting = self._waiting.get(call)
        if waiting is None or waiting.pending:
            text = f"look-up {call_id} of engine {engine.generation} has not asked for disk"
            raise InvalidTransitionError(text)
        table, commands = self._table, list[Command]()
        present, previous = set(on_disk), NO_SLOT
        num_missing = len(waiting.keys) - len(engine.calls[call_id])
        self._counters.disk_hits += len(present)
        self._counters.disk_misses += max(0, num_missing - len(present))
        for key in waiting.keys:
            slot = table.ready.get(key, table.written.get(key, NO_SLOT))
            if slot == NO_SLOT and key in present:
                slot = self._read(key, waiting.tenant, previous, commands)
            if slot == NO_SLOT:
                break
            if table.writers[slot] == DISK:
                waiting.pending.add(slot)
                self.slots[slot].add(call)
            elif table.phases[slot] is SlotPhase.RESERVED:
                break  # an engine is writing it, and may take its time
            previous = slot
        if not waiting.pending:
            return [*commands, self._answer(engine, call_id, self._waiting.pop(call))]
        deadline_s = waiting.deadline_s
        heapq.heappush(self._deadlines, (deadline_s, call))
        slots = self._find(waiting.keys)
        now = AnswerLookup(*call, slots.tobytes(), num_pending=len(waiting.pending))
        self._pin(engine, call_id, slots)
        return [*commands, now, WakeAt(deadline_s)]

    def end(self, slot: int, *, done: bool, engines: Mapping[int, Engine]) -> list[Command]:
        """Take note that a read has ended, and answer who waited for nothing else."""
        if slot not in self.slots:
            text = f"slot {slot} is not being read from disk"
            raise InvalidTransitionError(text)
        table = self._table
        calls = self.slots.pop(slot)
        if done:
            table.publish(slot)
            self._room.ranked(slot)
            self._counters.promotions += 1
        else:
            tenant = table.tenants[slot]
            self._room.freed(slot, tenant, table.abandon(slot))
            self._counters.failed_promotions += 1
        shown = shown_slot(table, slot)
        commands: list[Command] = [shown]
        for call in sorted(calls):
            waiting = self._waiting[call]
            waiting.pending.discard(slot)
            engine = engines[call[0]]
            if done:
                table.pins[slot] += 1
                engine.calls[call[1]].append(slot)
            if not waiting.pending:
                commands.append(self._answer(engine, call[1], self._waiting.pop(call)))
        return commands

    def expire(self, engines: Mapping[int, Engine], now_s: float) -> list[Command]:
        """Answer look-ups whose time is up with what is there; reads go on for later ones."""
        commands: list[Command] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, call = heapq.heappop(self._deadlines)
            if call in self._waiting:
                waiting = self._leave(call)
                commands.append(self._answer(engines[call[0]], call[1], waiting))
        return commands

    def forget(self, engine: Engine, call_id: int) -> None:
        """Let a look-up wait no more. Harmless where it does not."""
        call = (engine.generation, call_id)
        if call in self._waiting:
            self._leave(call)

    def check(self, engines: Mapping[int, Engine]) -> None:
        """Raise InvariantError unless look-ups and reads know of each other."""
        for slot, calls in self.slots.items():
            if any(slot not in self._waiting[call].pending for call in calls):
                text = f"slot {slot} is waited for by {calls}, which do not know; report this bug"
                raise InvariantError(text)
        for call, waiting in self._waiting.items():
            known = all(call in self.slots[slot] for slot in waiting.pending)
            if not known or call[1] not in engines[call[0]].calls:
                text = f"look-up {call} waits for {waiting.pending}, in vain; report this bug"
                raise InvariantError(text)
        if len(self.slots) > self._max_reads:
            text = f"{len(self.slots)} reads from disk, at most {self._max_reads} are allowed"
            raise InvariantError(text)

    def _read(self, key: bytes, tenant: int, parent: int, commands: list[Command]) -> int:
        if len(self.slots) >= self._max_reads:
            self._counters.disk_dropped += 1
            return NO_SLOT
        slot = self._room.take(tenant, commands, parent=parent)
        if slot != NO_SLOT:
            self._table.reserve(slot, key, tenant=tenant, writer=DISK, parent=parent)
            self.slots[slot] = set()
            commands += [shown_slot(self._table, slot), ReadFromDisk(slot, key)]
        return slot

    def _leave(self, call: _Call) -> _Waiting:
        waiting = self._waiting.pop(call)
        for slot in waiting.pending:
            self.slots[slot].discard(call)
        return waiting

    def _answer(self, engine: Engine, call_id: int, waiting: _Waiting) -> Command:
        slots = self._find(waiting.keys)
        self._pin(engine, call_id, slots)
        return AnswerLookup(engine.generation, call_id, slots.tobytes())

    def _find(self, keys: list[bytes]) -> "array[int]":
        get = self._table.ready.get
        return array("I", [get(key, ABSENT) for key in keys])

    def _pin(self, engine: Engine, call_id: int, slots: "array[int]") -> None:
        """Hold what a look-up is told of, instead of what it held so far."""
        held = [slot for slot in slots if slot != ABSENT]
        pins = self._table.pins
        for slot in held:
            pins[slot] += 1
        for slot in engine.calls[call_id]:
            pins[slot] -= 1  # found again above, since a pinned slot is not evicted
        engine.calls[call_id] = held
