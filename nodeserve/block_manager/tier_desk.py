"""Carries out what the host tier decides: directory, disk, answers to engines, log."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from nodeserve.block_manager.disk import DiskTier
from nodeserve.block_manager.log_file import LogFile
from nodeserve.block_manager.memory import TierShape
from nodeserve.clock import Clock
from nodeserve.errors import PeerError
from nodeserve.kv.host_tier import HostTier
from nodeserve.kv.slot_table import FoundSlot, SlotPhase
from nodeserve.kv.tier_events import (
    AnswerLookup,
    AnswerReservation,
    AskDisk,
    BlocksLookedUp,
    CallsReleased,
    Command,
    DiskAsked,
    DropBlock,
    Event,
    ReadFromDisk,
    ReadFromDiskEnded,
    ShowSlot,
    SlotsAbandoned,
    TimeElapsed,
    WakeAt,
    WriteToDisk,
    WriteToDiskEnded,
)
from nodeserve.kv.tier_log import Op
from nodeserve.transfer.slot_directory import SlotDirectory, SlotEntry, SlotState
from nodeserve.wire import kv_tier
from nodeserve.wire.kv_tier import ABSENT, split_slots

SendAnswer = Callable[[int, kv_tier.Answer], None]
"""Sends to an engine by its generation; raises PeerError where it cannot be sent to."""

SLOTS_A_TURN: Final = 1000
"""Adopted before the loop turns to others: some milliseconds."""

_STATES: Final = {phase: SlotState(phase) for phase in SlotPhase}
_PHASES: Final = {int(phase): phase for phase in SlotPhase}


class TierDesk:
    """One tier of one shape under one namespace; make it in the running loop.

    Attributes:
        tier: What is decided.
        disk: The tier behind it, once it is open.
        num_undelivered: Answers that their engine could not take.
        lookup_s: How long look-ups took, all together.
    """

    def __init__(
        self,
        tier: HostTier,
        directory: SlotDirectory,
        shape: TierShape,
        clock: Clock,
        *,
        send: SendAnswer,
        log: LogFile | None = None,
    ) -> None:
        self.tier = tier
        self.shape = shape
        self.disk: DiskTier | None = None
        self.num_undelivered = 0
        self.lookup_s = 0.0
        self._directory = directory
        self._clock = clock
        self._send = send
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def namespace(self) -> bytes:
        """What the keys are under."""
        return self._directory.shape.namespace

    async def adopt(self) -> None:
        """Take over what the directory says, some slots in each turn of the loop."""
        for first in range(0, self.shape.num_slots, SLOTS_A_TURN):
            entries = self._directory.used(first, first + SLOTS_A_TURN)
            self.obey(self.tier.adopt({slot: _found(entry) for slot, entry in entries.items()}))
            await asyncio.sleep(0)

    def take_over(self, generations: frozenset[int] | None, pinned: Iterable[bytes]) -> None:
        """Serve in the place of a predecessor that knew ``generations``; all of it was adopted."""
        self.obey(self.tier.take_over(generations, pinned, now_s=self._clock.now_s()))

    def tell(self, event: Event) -> None:
        """Hand in an event and do what follows from it.

        Raises:
            InvalidTransitionError: It is not accepted; nothing has changed.
        """
        begun_s = self._clock.now_s()
        commands = self.tier.handle(event, now_s=begun_s)
        if isinstance(event, BlocksLookedUp):
            self.lookup_s += self._clock.now_s() - begun_s
        self.obey(commands)

    def obey(self, commands: Iterable[Command]) -> None:
        """Carry out what the tier has decided, and what follows from that."""
        queue = deque(commands)
        while queue:
            command = queue.popleft()
            match command:
                case ShowSlot(slot, phase, key, tenant, parent):
                    state = _STATES[phase]
                    self._directory.write(slot, state, key, tenant=tenant, parent=parent)
                case DropBlock(slot, key, tenant):
                    self._directory.write(slot, SlotState.FREE, b"", tenant=0)
                    self._log_eviction(key, tenant)
                case AnswerLookup() | AnswerReservation():
                    queue += self._answer(command)
                case WakeAt(at_s):
                    self._wake(at_s)
                case AskDisk() | ReadFromDisk() | WriteToDisk():
                    queue += self._use_disk(command)

    def log(self, op: Op, listener: str, keys: bytes, parent: bytes = b"") -> None:
        """Log an event, where there is a log."""
        if self._log is not None:
            self._log.add(op, listener, keys, parent)

    def close(self) -> None:
        """Wake up no more and let go of the directory; its file keeps what it says."""
        for timer in self._timers:
            timer.cancel()
        self._directory.close()

    def _answer(self, answer: AnswerLookup | AnswerReservation) -> list[Command]:
        generation, call_id, slots = answer.generation, answer.call_id, answer.slots
        try:
            if isinstance(answer, AnswerLookup):
                pending = answer.num_pending
                found = kv_tier.KvFound(call_id=call_id, slots=slots, num_pending=pending)
                self._send(generation, found)
            else:
                self._send(generation, kv_tier.KvReserved(call_id=call_id, slots=slots))
        except PeerError:
            # It will never know of them: neither reads nor writes what it was not told.
            self.num_undelivered += 1
            given = [slot for slot in split_slots(slots) if slot != ABSENT]
            is_lookup = isinstance(answer, AnswerLookup)
            undone = (
                CallsReleased(generation, [call_id])
                if is_lookup
                else SlotsAbandoned(generation, given)
            )
            return self.tier.handle(undone, now_s=self._clock.now_s())
        return []

    def _use_disk(self, command: AskDisk | ReadFromDisk | WriteToDisk) -> list[Command]:
        disk, now_s = self.disk, self._clock.now_s()
        match command:
            case AskDisk(generation, call_id, keys):
                present = [] if disk is None else disk.present(keys)
                return self.tier.handle(DiskAsked(generation, call_id, present), now_s=now_s)
            case ReadFromDisk(slot, key):
                if disk is None or not disk.read(slot, key, self._read_ended):
                    return self.tier.handle(ReadFromDiskEnded(slot, done=False), now_s=now_s)
            case WriteToDisk(slot, key):
                if disk is None or not disk.write(slot, key, self._write_ended):
                    return self.tier.handle(WriteToDiskEnded(slot), now_s=now_s)
        return []

    def _read_ended(self, slot: int, done: bool) -> None:  # noqa: FBT001
        self.tell(ReadFromDiskEnded(slot, done=done))

    def _write_ended(self, slot: int, done: bool) -> None:  # noqa: ARG002, FBT001
        self.tell(WriteToDiskEnded(slot))

    def _wake(self, at_s: float) -> None:
        def wake() -> None:
            self._timers.discard(timer)
            self.tell(TimeElapsed())

        delay_s = max(0.0, at_s - self._clock.now_s())
        timer = self._loop.call_later(delay_s, wake)
        self._timers.add(timer)

    def _log_eviction(self, key: bytes, tenant: int) -> None:
        if self._log is not None:
            self._log.add(Op.EVICT, self.tier.room.books[tenant].name, key)


def _found(entry: SlotEntry) -> FoundSlot:
    """Return what an entry says; one that its writer died in the middle of says nothing sure."""
    phase = _PHASES.get(entry.state, SlotPhase.QUARANTINED)
    if entry.sequence % 2:
        phase = SlotPhase.QUARANTINED
    parent = entry.parent if any(entry.parent) else b""
    return FoundSlot(phase, entry.key, entry.tenant, parent)
