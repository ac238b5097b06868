"""What the operator asks of the tiers: their account, and to clear, pin and unpin."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from nodeserve.block_manager.admission import Admission
from nodeserve.block_manager.status import build_status
from nodeserve.block_manager.tier_desk import TierDesk
from nodeserve.errors import CapacityError, NodeserveError, RequestError
from nodeserve.kv.room import tenant_of
from nodeserve.wire import control
from nodeserve.wire.kv_control import (
    KvClear,
    KvDone,
    KvPin,
    KvTierStatus,
    KvTierStatusRequest,
    KvUnpin,
)

CLEAR_AT_ONCE: Final = 500
"""Blocks evicted between two turns of the loop: some milliseconds."""

MAX_CLEARS: Final = 8

Question = KvTierStatusRequest | KvClear | KvPin | KvUnpin


class Manager(Protocol):
    """What there is to ask about."""

    desk: TierDesk | None
    disk_failure: str | None
    admission: Admission

    def keep_pins(self) -> None:
        """Remember for a successor what is pinned now."""
        ...

    @property
    def num_rejected(self) -> int:
        """Frames and messages dropped because they were not what they should be."""
        ...

    @property
    def num_stale(self) -> int:
        """Messages of engines that spoke of what is no more, or not known here."""
        ...

    @property
    def num_logged(self) -> tuple[int, int]:
        """Lines of the log that were written, and those that were dropped."""
        ...


class OperatorDesk:
    """Answers each question once, by ``say``. ``run`` clears, one after another."""

    def __init__(self, manager: Manager, say: Callable[[control.Message], None]) -> None:
        self._manager = manager
        self._say = say
        self._clears: asyncio.Queue[KvClear] = asyncio.Queue(MAX_CLEARS)

    def take(self, question: Question) -> None:
        """Answer now, or for a KvClear when it is done."""
        try:
            match question:
                case KvTierStatusRequest():
                    self._say(self._status(question.call_id))
                case KvClear():
                    if question.listener is not None:
                        self._require_listener(question.listener)
                    self._clears.put_nowait(question)
                case KvPin(key=key):
                    number = len(self._desk().tier.pinned.pin(key))
                    self._manager.keep_pins()
                    self._done(question.call_id, f"{number} blocks pinned")
                case KvUnpin(key=key):
                    detail = self._unpin(key)
                    self._manager.keep_pins()
                    self._done(question.call_id, detail)
        except NodeserveError as error:
            self._failed(question.call_id, error)
        except asyncio.QueueFull:
            text = f"host tier: {MAX_CLEARS} clears wait already; try again when they are done"
            self._failed(question.call_id, CapacityError(text))

    async def run(self) -> None:
        """Clear what is asked for, until cancelled."""
        while True:
            asked = await self._clears.get()
            try:
                self._done(asked.call_id, await self._clear(asked.listener))
            except NodeserveError as error:
                self._failed(asked.call_id, error)

    def _unpin(self, key: str | None) -> str:
        pinned = self._desk().tier.pinned
        if key is None:
            return f"{pinned.unpin_all()} prefixes unpinned"
        return f"{len(pinned.unpin(key))} blocks unpinned"

    async def _clear(self, listener: str | None) -> str:
        desk = self._desk()
        if listener is None and desk.disk is not None:
            desk.disk.clear()
        # What is stored meanwhile may be cleared too, but not for ever.
        number = 0
        for _ in range(desk.shape.num_slots // CLEAR_AT_ONCE + 1):
            commands, cleared = desk.tier.clear(listener, CLEAR_AT_ONCE)
            desk.obey(commands)
            number += cleared
            if cleared < CLEAR_AT_ONCE:
                break
            await asyncio.sleep(0)
            if self._manager.desk is not desk:
                break
        left = len(desk.tier.table.ready)
        return f"{number} blocks cleared, {left} in use, pinned or of other listeners left"

    def _status(self, call_id: int) -> KvTierStatus:
        manager = self._manager
        logged, unlogged = manager.num_logged
        if manager.desk is None:
            state = "adopting" if manager.admission.is_opening else "waiting"
            status = KvTierStatus(call_id=call_id, state=state)
        else:
            model = manager.admission.model
            status = build_status(call_id, model, manager.desk, manager.disk_failure)
        return msgspec.structs.replace(
            status,
            refused_engines=dict(manager.admission.refused),
            rejected_frames=manager.num_rejected,
            stale_messages=status.stale_messages + manager.num_stale,
            logged=logged,
            unlogged=unlogged,
        )

    def _require_listener(self, listener: str) -> None:
        books = self._desk().tier.room.books
        if tenant_of(listener) not in books:
            names = ", ".join(sorted(book.name for book in books.values() if book.name))
            text = f"host tier: no listener {listener!r}; those that have used it are: {names}"
            raise RequestError(text)

    def _desk(self) -> TierDesk:
        desk = self._manager.desk
        if desk is None:
            text = "host tier: no engine has used it yet; ask again when a worker is ready"
            raise CapacityError(text)
        return desk

    def _done(self, call_id: int, detail: str) -> None:
        self._say(KvDone(call_id=call_id, detail=detail))

    def _failed(self, call_id: int, error: NodeserveError) -> None:
        self._say(KvDone(call_id=call_id, error=str(error), exit_code=error.exit_code))
