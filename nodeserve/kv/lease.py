"""Who may still read which of a worker's KV blocks: the leases of one generation.

A finished prefill leg's blocks stay pinned under a lease until it is released or its time is up.
A slot in shared memory shows readers that a lease holds. The order of the commands is the safety
argument: a slot is cleared before its blocks are unpinned, so a reader who finds the slot
unchanged after its copy has copied the right bytes.
"""

import enum
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeserve.errors import InvalidTransitionError, InvariantError
from nodeserve.ids import LeaseId


class Phase(enum.StrEnum):
    """Where a lease is in its life."""

    GRANTED = "granted"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class HandoffOffered:
    """A prefill leg has finished and its blocks can be read."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """Whoever held the lease needs it no more. A late one, after expiry, is no error."""

    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class TimeElapsed:
    """Some time has passed."""


Event = HandoffOffered | LeaseReleased | TimeElapsed


@dataclass(frozen=True, slots=True)
class PinBlocks:
    """Count one more reader on each block."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishSlot:
    """Show readers that the lease holds."""

    slot: int
    lease_id: LeaseId


@dataclass(frozen=True, slots=True)
class ClearSlot:
    """Show readers that the lease has ended. Always before the blocks are unpinned."""

    slot: int


@dataclass(frozen=True, slots=True)
class UnpinBlocks:
    """Count one reader less on each block."""

    blocks: tuple[int, ...]


Command = PinBlocks | PublishSlot | ClearSlot | UnpinBlocks

ENDS: Final[Mapping[type[Event], Phase]] = {
    LeaseReleased: Phase.RELEASED,
    TimeElapsed: Phase.EXPIRED,
    HandoffOffered: Phase.EXPIRED,
}
"""What each event makes of a granted lease that it ends."""


@dataclass(slots=True)
class _Lease:
    lease_id: LeaseId
    slot: int
    blocks: tuple[int, ...]
    ends_s: float


class LeaseBook:
    """The leases that one engine generation has granted and not yet ended."""

    def __init__(self, *, ttl_s: float, num_slots: int) -> None:
        """Start without leases; all of them last ``ttl_s`` and share ``num_slots`` slots."""
        self._ttl_s = ttl_s
        self._num_slots = num_slots
        self._granted: dict[LeaseId, _Lease] = {}
        self._free_slots = deque(range(num_slots))
        self._last_id = 0
        self._ended = dict.fromkeys(Phase, 0)

    @property
    def num_granted(self) -> int:
        """How many leases hold."""
        return len(self._granted)

    @property
    def num_expired(self) -> int:
        """How many leases ended because their time was up or their slot was needed."""
        return self._ended[Phase.EXPIRED]

    def phase(self, lease_id: LeaseId) -> Phase | None:
        """Return GRANTED while a lease holds, None afterwards: ended leases are forgotten."""
        return Phase.GRANTED if lease_id in self._granted else None

    def blocks(self) -> set[int]:
        """Return the blocks that may still be read."""
        return {block for lease in self._granted.values() for block in lease.blocks}

    def handle(self, event: Event, *, now_s: float) -> list[Command]:
        """Apply one event and return what the caller must now do, in order.

        Raises:
            InvalidTransitionError: A lease is released that was never granted.
        """
        match event:
            case HandoffOffered(blocks):
                return self._grant(blocks, now_s)
            case LeaseReleased(lease_id):
                if not 0 < lease_id <= self._last_id:
                    text = (
                        f"lease {lease_id} was never granted here, the last one was {self._last_id}"
                    )
                    raise InvalidTransitionError(text)
                lease = self._granted.get(lease_id)
                return [] if lease is None else self._end([lease], ENDS[LeaseReleased])
            case TimeElapsed():
                return self._end(self._overdue(now_s), ENDS[TimeElapsed])

    def check(self) -> None:
        """Raise InvariantError unless every slot is either free or of exactly one lease."""
        slots = [*self._free_slots, *(lease.slot for lease in self._granted.values())]
        if sorted(slots) != list(range(self._num_slots)):
            text = f"{self._num_slots} lease slots, but free and granted ones are {sorted(slots)}"
            raise InvariantError(text)

    def _grant(self, blocks: tuple[int, ...], now_s: float) -> list[Command]:
        commands: list[Command] = []
        if not self._free_slots:
            # The oldest holder finds its slot changed and recomputes: slow, but never wrong.
            oldest = next(iter(self._granted.values()))
            commands += self._end([oldest], ENDS[HandoffOffered])
        self._last_id += 1
        lease_id = LeaseId(self._last_id)
        slot = self._free_slots.popleft()
        self._granted[lease_id] = _Lease(lease_id, slot, blocks, now_s + self._ttl_s)
        return [*commands, PinBlocks(blocks), PublishSlot(slot, lease_id)]

    def _overdue(self, now_s: float) -> list[_Lease]:
        overdue = []
        for lease in self._granted.values():  # granted in the order in which they end
            if lease.ends_s > now_s:
                break
            overdue.append(lease)
        return overdue

    def _end(self, leases: Iterable[_Lease], phase: Phase) -> list[Command]:
        commands: list[Command] = []
        for lease in leases:
            del self._granted[lease.lease_id]
            self._free_slots.append(lease.slot)
            self._ended[phase] += 1
            commands += [ClearSlot(lease.slot), UnpinBlocks(lease.blocks)]
        return commands
