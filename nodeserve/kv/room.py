"""Room in the host tier: whose blocks lie in which slots, and whose go when another needs one.

A block never goes before one that follows it: only leaves are ranked, in one heap per listener,
and the block before the last one to go becomes a leaf. Heaps are lazy: an entry's rank is looked
at again when it comes to the top.
"""

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.errors import InvariantError
from nodeserve.kv.eviction import EvictionPolicy
from nodeserve.kv.slot_table import NO_SLOT, FoundSlot, SlotPhase, SlotTable
from nodeserve.kv.tier_events import Command, DropBlock

MAX_TENANTS: Final = 256
OTHERS: Final = "others"
"""Whom blocks are booked on when there are more listeners than are counted apart."""


@dataclass(slots=True)
class TenantBook:
    """One listener's part of the host tier; counters are of blocks, ``name`` "" if not known."""

    name: str
    quota: float | None
    max_slots: int
    slots: int = 0
    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    dropped: int = 0


class _Leaf(NamedTuple):
    rank: int
    slot: int
    epoch: int


def tenant_of(listener: str) -> int:
    """Return the number that stands for a listener, on this node and for ever; never 0."""
    return int.from_bytes(hashlib.blake2b(listener.encode(), digest_size=8).digest(), "little") or 1


class Room:
    """Finds slots for new blocks, by evicting where it must.

    Attributes:
        may_evict: Whether anything may be evicted yet; not while engines that a predecessor knew
            may read what is not pinned here.
        books: Each listener's part, by its tenant number.
    """

    def __init__(
        self, table: SlotTable, policy: EvictionPolicy, quotas: Mapping[str, float]
    ) -> None:
        """Share out ``table``; ``quotas`` are listeners' shares, of those who have a bound."""
        self.may_evict = True
        self.books: dict[int, TenantBook] = {}
        self._table = table
        self._policy = policy
        self._quotas = {tenant_of(name): quota for name, quota in quotas.items()}
        self._free = list(range(table.num_slots - 1, -1, -1))
        self._leaves: dict[int, list[_Leaf]] = {}
        self._is_queued = bytearray(table.num_slots)
        for name in quotas:
            self.book(name)

    @property
    def num_free(self) -> int:
        """How many slots hold nothing."""
        return len(self._free)

    def book(self, listener: str) -> tuple[int, TenantBook]:
        """Return a listener's number and its part, opening it if that is new."""
        tenant = tenant_of(listener)
        book = self.books.get(tenant)
        if book is None:
            if len(self.books) >= MAX_TENANTS and listener != OTHERS:
                return self.book(OTHERS)
            book = self._open(tenant)
        book.name = listener
        return tenant, book

    def adopt(self, found: Mapping[int, FoundSlot]) -> None:
        """Take over some of what a predecessor left, before anything else happens."""
        table = self._table
        for slot, entry in found.items():
            table.adopt(slot, entry)
            if table.phases[slot] is SlotPhase.FREE:
                continue
            (self.books.get(entry.tenant) or self._open(entry.tenant)).slots += 1
            if table.phases[slot] is SlotPhase.READY:
                self._policy.stored(slot, entry.key)
                self.offer(slot)

    def end_adoption(self) -> None:
        """Take note of which slots are left for others once all were taken over."""
        phases = self._table.phases
        self._free = [slot for slot in self._free if phases[slot] is SlotPhase.FREE]

    def take(self, tenant: int, commands: list[Command], *, parent: int) -> int:
        """Return a FREE slot for a block that is then booked on ``tenant``, or NO_SLOT.

        ``parent``, the block before it, is not evicted for it. Evictions go to ``commands``.
        """
        table, book = self._table, self.books[tenant]
        if parent != NO_SLOT:
            table.holds[parent] += 1
        victim = NO_SLOT
        if book.slots >= book.max_slots:
            victim = self._coldest([tenant])
            if victim == NO_SLOT:
                return self._dropped(book, parent)
        elif not self._free:
            over = [t for t, other in self.books.items() if other.slots > other.max_slots]
            victim = self._coldest(over)
            if victim == NO_SLOT:
                victim = self._coldest(list(self._leaves))
            if victim == NO_SLOT:
                return self._dropped(book, parent)
        if victim != NO_SLOT:
            self.evict(victim, commands)
        if parent != NO_SLOT:
            self._let_go(parent)
        book.slots += 1
        return self._free.pop()

    def evict(self, slot: int, commands: list[Command]) -> None:
        """Free a slot that ``SlotTable.is_evictable``."""
        table = self._table
        key, tenant = table.keys[slot], table.tenants[slot]
        parent = table.evict(slot)
        self._policy.dropped(slot, key)
        self.books[tenant].evictions += 1
        commands.append(DropBlock(slot, key, tenant))
        self.freed(slot, tenant, parent)

    def freed(self, slot: int, tenant: int, parent: int) -> None:
        """Take a slot back that was just freed; ``parent`` is the block before it."""
        self.books[tenant].slots -= 1
        self._is_queued[slot] = 0
        self._free.append(slot)
        if parent != NO_SLOT:
            self.offer(parent)

    def stored(self, slot: int) -> None:
        """Count and rank a slot that an engine has just published."""
        self.books[self._table.tenants[slot]].stores += 1
        self.ranked(slot)

    def ranked(self, slot: int) -> None:
        """Rank a slot that has just become READY."""
        self._policy.stored(slot, self._table.keys[slot])
        self.offer(slot)

    def used(self, slots: list[int]) -> None:
        """Take note that a look-up found these slots, in the order of the prompt."""
        self._policy.used(slots[::-1])

    def offer(self, slot: int) -> None:
        """Let a slot be evicted in its turn if nothing needs it any more."""
        if not self._is_queued[slot] and self._table.is_evictable(slot):
            self._is_queued[slot] = 1
            leaf = _Leaf(self._policy.rank(slot), slot, self._table.epochs[slot])
            heapq.heappush(self._leaves.setdefault(self._table.tenants[slot], []), leaf)

    def clear(self, tenant: int | None, most: int, commands: list[Command]) -> int:
        """Evict up to ``most`` blocks, of ``tenant`` or of all, that nobody needs; say how many."""
        tenants = list(self._leaves) if tenant is None else [tenant]
        for number in range(most):
            slot = self._coldest(tenants)
            if slot == NO_SLOT:
                return number
            self.evict(slot, commands)
        return most

    def check(self) -> None:
        """Raise InvariantError unless every slot is booked once and leaves can be found."""
        table = self._table
        owned = dict.fromkeys(self.books, 0)
        for slot, phase in enumerate(table.phases):
            if phase is not SlotPhase.FREE:
                owned[table.tenants[slot]] += 1
            if table.is_evictable(slot) and not self._is_queued[slot]:
                text = f"slot {slot} could be evicted and is in no queue; report this bug"
                raise InvariantError(text)
        free = [slot for slot, phase in enumerate(table.phases) if phase is SlotPhase.FREE]
        if sorted(self._free) != free:
            text = f"{len(self._free)} slots are listed as free, {len(free)} are; report this bug"
            raise InvariantError(text)
        for tenant, book in self.books.items():
            if book.slots != owned[tenant]:
                text = f"listener {book.name!r} is booked {book.slots} slots, has {owned[tenant]}"
                raise InvariantError(text)
        queued = [
            leaf.slot
            for leaves in self._leaves.values()
            for leaf in leaves
            if leaf.epoch == table.epochs[leaf.slot]
        ]
        if len(queued) != len(set(queued)) or len(queued) != sum(self._is_queued):
            text = f"{len(queued)} leaves are queued, {sum(self._is_queued)} say so; report this"
            raise InvariantError(text)

    def _coldest(self, tenants: list[int]) -> int:
        if not self.may_evict:
            return NO_SLOT
        tops = [top for tenant in tenants if (top := self._top(tenant)) is not None]
        return min(tops).slot if tops else NO_SLOT

    def _top(self, tenant: int) -> _Leaf | None:
        """Return a listener's leaf of the lowest rank, having put right what lies above it."""
        leaves = self._leaves.get(tenant, [])
        table, policy = self._table, self._policy
        while leaves:
            leaf = leaves[0]
            slot = leaf.slot
            if leaf.epoch != table.epochs[slot]:
                heapq.heappop(leaves)
            elif not table.is_evictable(slot):
                heapq.heappop(leaves)
                self._is_queued[slot] = 0
            elif (rank := policy.rank(slot)) != leaf.rank:
                heapq.heapreplace(leaves, leaf._replace(rank=rank))
            else:
                return leaf
        return None

    def _dropped(self, book: TenantBook, parent: int) -> int:
        book.dropped += 1
        if parent != NO_SLOT:
            self._let_go(parent)
        return NO_SLOT

    def _let_go(self, slot: int) -> None:
        self._table.holds[slot] -= 1
        self.offer(slot)

    def _open(self, tenant: int) -> TenantBook:
        quota = self._quotas.get(tenant)
        num_slots = self._table.num_slots
        most = num_slots if quota is None else max(1, int(quota * num_slots))
        book = self.books[tenant] = TenantBook("", quota, most)
        return book
