"""What a simulated engine keeps below its GPU: blocks looked up when a request comes, and stored.

A block here is its key, repeated at both ends of its slot, so that a wrong one is found out: it
is counted and logged, and its tokens are computed again. Loads and stores take the time that the
performance model says, and hold their slots for as long.
"""

import hashlib
import heapq
import logging
import math
from dataclasses import asdict, dataclass, field
from typing import Final, Protocol

from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.tier_client import Lookup, Reservation
from nodeserve.errors import PeerError
from nodeserve.ids import BlockHash
from nodeserve.wire.kv_tier import ABSENT, KEY_BYTES

_log: Final = logging.getLogger(__name__)

DISK_S: Final = 0.5
"""How long blocks on disk are worth waiting for."""

POLL_S: Final = 0.0005
"""How often answers are looked for while requests wait for them."""

IDLE_S: Final = 1.0
"""How often a block manager is listened to that nobody waits for."""


class Client(Protocol):
    """The line to the block manager; ``engine.tier_client.TierClient`` is one."""

    @property
    def is_waiting(self) -> bool:
        """Whether a reservation is to be answered, or slots are still to be written."""
        ...

    def lookup(self, listener: str, keys: bytes, *, disk_s: float) -> Lookup | None:
        """Ask where blocks are; None when there is nobody to ask."""
        ...

    def release(self, lookup: Lookup) -> None:
        """Give a look-up's pins back."""
        ...

    def reserve(self, listener: str, keys: bytes, parent: bytes) -> Reservation | None:
        """Ask for slots to store blocks in; None when there is nobody to ask."""
        ...

    def count_read(self, num_bytes: int, seconds: float) -> None:
        """Count what was copied out of slots."""
        ...

    def count_written(self, num_bytes: int, seconds: float) -> None:
        """Count what was copied into slots."""
        ...

    def publish(self, slots: list[int]) -> None:
        """Say that reserved slots are written."""
        ...

    def abandon(self, slots: list[int]) -> None:
        """Say that reserved slots will not be written."""
        ...

    def poll(self) -> None:
        """Take what has come."""
        ...


class Slots(Protocol):
    """The tier's memory."""

    def write(self, slot: int, key: bytes) -> None:
        """Write the block of ``key``; PeerError where the memory is not to be had."""
        ...

    def holds(self, slot: int, key: bytes) -> bool:
        """Tell whether a slot holds the block of ``key``, as its directory and its bytes say."""
        ...


@dataclass(slots=True)
class Counts:
    """What came of loads and stores, since the start. ``corrupt`` were not what they should be."""

    loaded_blocks: int = 0
    load_failures: int = 0
    corrupt: int = 0
    stored_blocks: int = 0


@dataclass(slots=True)
class _Load:
    sequence: Sequence
    lookup: Lookup
    first: int
    keys: list[bytes] = field(default_factory=list)


class NoTier:
    """Nothing is kept below the GPU."""

    @property
    def asking(self) -> list[Sequence]:
        """Requests that wait for the answer to their look-up."""
        return []

    @property
    def loading(self) -> list[Sequence]:
        """Requests whose load runs beside the steps."""
        return []

    def wake_s(self, now_s: float) -> float:  # noqa: ARG002
        """Return when to look at it again at the latest."""
        return math.inf

    def ask(self, sequence: Sequence) -> bool:  # noqa: ARG002
        """Look up what a new request could load; return whether it must wait for the answer."""
        return False

    def take_answered(self, now_s: float) -> list[Sequence]:  # noqa: ARG002
        """Take what the block manager says; return the requests that need wait no longer."""
        return []

    def found(self, sequence: Sequence, first: int) -> int:  # noqa: ARG002
        """Return how many blocks from ``first`` on can be loaded, without a gap."""
        return 0

    def load(self, sequence: Sequence, first: int, count: int, now_s: float) -> None:
        """Begin to load ``count`` blocks from ``first`` on, as ``found`` has said; 0 for none."""

    def take_loaded(self, now_s: float) -> list[Sequence]:  # noqa: ARG002
        """Return the requests whose load has ended; what failed of it is computed here."""
        return []

    def forget(self, sequence: Sequence) -> None:
        """Give back what was found for a request that loads nothing, or has ended."""

    def store(self, sequence: Sequence, first: int, end: int) -> None:
        """Offer full blocks to the tier; whether it takes them nobody waits for."""

    def stats(self) -> dict[str, int]:
        """Return what came of loads and stores, since the start."""
        return {}


class Tier(NoTier):
    """One engine's look-ups, loads and stores. Reads no clock.

    Attributes:
        counts: What came of them.
    """

    def __init__(self, client: Client, slots: Slots, limits: Limits) -> None:
        self._client = client
        self._slots = slots
        self._limits = limits
        self._lookups: dict[Sequence, Lookup] = {}
        self._asking: list[Sequence] = []
        self._loading: list[tuple[float, int, _Load]] = []
        self._reserving: list[Reservation] = []
        self._storing: list[tuple[float, int, list[int]]] = []
        self._num_copies = 0
        self.counts = Counts()

    @property
    def asking(self) -> list[Sequence]:
        """Requests that wait for the answer to their look-up."""
        return [sequence for sequence in self._asking if sequence.is_live]

    @property
    def loading(self) -> list[Sequence]:
        """Requests whose load runs beside the steps."""
        return [load.sequence for _, _, load in self._loading if load.sequence.is_live]

    def wake_s(self, now_s: float) -> float:
        """Return when to look at it again at the latest."""
        copies = [entry[0] for entry in (*self._loading[:1], *self._storing[:1])]
        soon_s = now_s + (POLL_S if self._asking or self._reserving else IDLE_S)
        return min([soon_s, *copies])

    def stats(self) -> dict[str, int]:
        """Return what came of loads and stores, since the start."""
        return {f"tier_{name}": value for name, value in asdict(self.counts).items()}

    # ------------------------------------------------------------------------------ loads

    def ask(self, sequence: Sequence) -> bool:
        """Look up what a new request could load; return whether it must wait for the answer."""
        if sequence.handoff is not None or not sequence.reads_prefix_cache:
            return False
        num_full = (sequence.num_tokens - 1) // self._limits.block_size
        sequence.hash_up_to(num_full, self._limits.block_size)
        keys = b"".join(key_of(one, sequence.salt) for one in sequence.hashes[:num_full])
        self._client.poll()  # a welcome may have come while nothing ran
        lookup = self._client.lookup(sequence.listener, keys, disk_s=DISK_S) if keys else None
        if lookup is None:
            return False
        self._lookups[sequence] = lookup
        self._asking.append(sequence)
        return True

    def take_answered(self, now_s: float) -> list[Sequence]:
        """Take what the block manager says; return the requests that need wait no longer."""
        self._client.poll()
        self._take_reserved(now_s)
        self._end_stores(now_s)
        if not self._asking:
            return []
        answered = [one for one in self._asking if self._is_answered(one)]
        self._asking = [one for one in self._asking if not self._is_answered(one)]
        return [one for one in answered if one.is_live]

    def found(self, sequence: Sequence, first: int) -> int:
        """Return how many blocks from ``first`` on can be loaded, without a gap."""
        lookup = self._lookups.get(sequence)
        if lookup is None or lookup.released:
            return 0
        behind = lookup.slots[first:]
        return next((n for n, slot in enumerate(behind) if slot == ABSENT), len(behind))

    def load(self, sequence: Sequence, first: int, count: int, now_s: float) -> None:
        """Begin to load ``count`` blocks from ``first`` on, as ``found`` has said; 0 for none."""
        sequence.is_loading = count > 0
        if not count:
            self.forget(sequence)
            return
        sequence.num_onboarded = first + count
        lookup = self._lookups.pop(sequence)
        hashes = sequence.hashes[first : first + count]
        keys = [key_of(one, sequence.salt) for one in hashes]
        due_s = now_s + self._copy_s(count)
        load = _Load(sequence, lookup, first, keys)
        heapq.heappush(self._loading, (due_s, self._next_copy(), load))

    def take_loaded(self, now_s: float) -> list[Sequence]:
        """Return the requests whose load has ended; what failed of it is computed here."""
        loaded = []
        while self._loading and self._loading[0][0] <= now_s:
            load = heapq.heappop(self._loading)[2]
            if load.sequence.is_live:
                self._end_load(load)
                loaded.append(load.sequence)
            self._client.release(load.lookup)
        return loaded

    def forget(self, sequence: Sequence) -> None:
        """Give back what was found for a request that loads nothing, or has ended."""
        lookup = self._lookups.pop(sequence, None)
        if lookup is not None:
            self._client.release(lookup)

    def _is_answered(self, sequence: Sequence) -> bool:
        lookup = self._lookups.get(sequence)
        return lookup is None or lookup.answered

    def _end_load(self, load: _Load) -> None:
        sequence, slots = load.sequence, load.lookup.slots
        num_good = 0
        for place, key in enumerate(load.keys):
            if load.lookup.released or not self._check(slots[load.first + place], key):
                break
            num_good += 1
        self.counts.loaded_blocks += num_good
        num_read = num_good * self._limits.block_bytes
        self._client.count_read(num_read, self._copy_s(num_good))
        if num_good < len(load.keys):
            self.counts.load_failures += 1
            sequence.lose_loaded((load.first + num_good) * self._limits.block_size)

    def _check(self, slot: int, key: bytes) -> bool:
        try:
            if self._slots.holds(slot, key):
                return True
        except PeerError as error:
            _log.warning("kv_load_failed slot=%d cause=%s", slot, error)
            return False
        self.counts.corrupt += 1
        _log.error("kv_load_corrupt slot=%d key=%s", slot, key.hex()[:16])
        return False

    # ----------------------------------------------------------------------------- stores

    def store(self, sequence: Sequence, first: int, end: int) -> None:
        """Offer full blocks to the tier; whether it takes them nobody waits for."""
        first = max(first, sequence.num_onboarded)
        if end <= first:
            return
        known = sequence.hashes[:end]
        keys = b"".join(key_of(one, sequence.salt) for one in known[first:])
        parent = key_of(known[first - 1], sequence.salt) if first else b""
        reservation = self._client.reserve(sequence.listener, keys, parent)
        if reservation is not None:
            self._reserving.append(reservation)

    def _take_reserved(self, now_s: float) -> None:
        answered = [one for one in self._reserving if one.answered]
        if not answered:
            return
        self._reserving = [one for one in self._reserving if not one.answered]
        for one in answered:
            slots = self._written(one)
            if slots:
                due_s = now_s + self._copy_s(len(slots))
                heapq.heappush(self._storing, (due_s, self._next_copy(), slots))

    def _written(self, reservation: Reservation) -> list[int]:
        """Write the blocks that got a slot; return their slots."""
        slots = []
        for place, slot in enumerate(reservation.slots):
            if slot == ABSENT:
                continue
            key = reservation.keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]
            try:
                self._slots.write(slot, key)
                slots.append(slot)
            except PeerError as error:
                _log.warning("kv_store_failed slot=%d cause=%s", slot, error)
                self._client.abandon([slot])
        return slots

    def _end_stores(self, now_s: float) -> None:
        while self._storing and self._storing[0][0] <= now_s:
            slots = heapq.heappop(self._storing)[2]
            self.counts.stored_blocks += len(slots)
            num_written = len(slots) * self._limits.block_bytes
            self._client.count_written(num_written, self._copy_s(len(slots)))
            self._client.publish(slots)

    def _copy_s(self, num_blocks: int) -> float:
        num_bytes = num_blocks * self._limits.block_bytes
        return self._limits.host_link.transfer_s(num_bytes) / self._limits.speedup

    def _next_copy(self) -> int:
        self._num_copies += 1
        return self._num_copies


def key_of(block_hash: BlockHash, salt: str | None) -> bytes:
    """Return the key of a block for the tier: equal in every simulated engine of a model."""
    text = block_hash.to_bytes(8, "little", signed=True) + (salt or "").encode()
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()
