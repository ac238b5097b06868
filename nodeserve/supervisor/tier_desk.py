"""Between the block manager and everybody else: what the operator asks, and who has died."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Final

import msgspec

from nodeserve.errors import CapacityError, PeerError, RequestError
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.slot import Slot
from nodeserve.supervisor.plan import BLOCK_MANAGER
from nodeserve.wire import control
from nodeserve.wire.kv_control import (
    KvClear,
    KvDone,
    KvEngineGone,
    KvPin,
    KvTierStatus,
    KvTierStatusRequest,
    KvUnpin,
)

_log: Final = logging.getLogger(__name__)

ANSWER_WITHIN_S: Final = 4.0
"""How long the block manager may take for the operator; less than the command line waits."""

MAX_CALLS: Final = 64
"""Questions under way at a time; more are refused."""

MAX_GONE: Final = 1024
"""Dead worker generations that a block manager which is not there now will be told of."""

Question = KvTierStatusRequest | KvClear | KvPin | KvUnpin
Answer = KvTierStatus | KvDone


class TierDesk:
    """Hands questions on to the block manager, and tells it which workers are gone.

    ``cleared`` returns when nobody is left of the ended children of a name; PeerError where
    somebody still is. ``send`` raises PeerError where the peer is not there.
    """

    def __init__(
        self,
        life: NodeLife,
        cleared: Callable[[str], Awaitable[None]],
        send: Callable[[bytes, control.Message], None],
        *,
        gone: Iterable[int] = (),
    ) -> None:
        self._life = life
        self._cleared = cleared
        self._send = send
        self._gone = deque(gone, MAX_GONE)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._last_call = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def gone(self) -> list[int]:
        """Worker generations that the next block manager must hear of."""
        return list(self._gone)

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for an answer, or for the last of a dead worker's processes."""
        return not self._tasks and not self._calls

    def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._tasks:
            task.cancel()

    # ----------------------------------------------------------------------- dead workers

    def worker_ended(self, name: str, generation: int) -> None:
        """Tell the block manager of a worker's end once all of its processes are gone."""
        if BLOCK_MANAGER in self._life.slots:
            self._in_background(self._tell_when_gone(name, generation))

    def manager_ready(self, generation: int) -> None:
        """Tell a block manager that has just come of all who died before or while it did."""
        with contextlib.suppress(PeerError):
            for gone in self._gone:
                self._send(str(generation).encode(), KvEngineGone(generation=gone))

    async def _tell_when_gone(self, name: str, generation: int) -> None:
        while True:  # who lives on, though killed, may still write
            try:
                await self._cleared(name)
                break
            except PeerError as error:
                _log.warning("worker_not_gone name=%s generation=%d %s", name, generation, error)
        self._gone.append(generation)
        self._tell(KvEngineGone(generation=generation))

    # ------------------------------------------------------------------------- operator

    def ask(self, question: Question, reply: Callable[[control.Message], None]) -> None:
        """Hand a question of the command line on; ``reply`` is called once, with any answer."""
        self._in_background(self._answer(question, reply))

    def heard(self, answer: Answer) -> None:
        """Take an answer of the block manager; one that nobody waits for is dropped."""
        waiting = self._calls.pop(answer.call_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def status(self, within_s: float) -> KvTierStatus | None:
        """Return the tiers' own account; None where there are none or nobody answers in time."""
        if not self._is_there(self._slot):
            return None
        try:
            answer = await self._call(KvTierStatusRequest(), within_s)
        except (PeerError, CapacityError):
            return None
        return answer if isinstance(answer, KvTierStatus) else None

    async def _answer(self, question: Question, reply: Callable[[control.Message], None]) -> None:
        try:
            self._require()
            answer = await self._call(question, ANSWER_WITHIN_S)
        except (CapacityError, PeerError, RequestError) as error:
            reply(control.CommandReply(error=str(error), exit_code=error.exit_code))
            return
        if isinstance(answer, KvTierStatus):
            reply(answer)
        else:
            done = control.CommandReply(
                detail=answer.detail, error=answer.error, exit_code=answer.exit_code
            )
            reply(done)

    @property
    def _slot(self) -> Slot | None:
        return self._life.slots.get(BLOCK_MANAGER)

    def _is_there(self, slot: Slot | None) -> bool:
        return slot is not None and slot.serves

    def _require(self) -> None:
        slot = self._slot
        if slot is None:
            text = (
                "this node keeps KV nowhere below its GPUs; set `size` in [kv.host], or serve "
                "with --kv-host SIZE"
            )
            raise RequestError(text)
        if not slot.serves:
            text = f"{slot.name} is {slot.state()}; see `nodeserve status`"
            raise PeerError(text)

    async def _call(self, question: Question, within_s: float) -> Answer:
        if len(self._calls) >= MAX_CALLS:
            text = f"{MAX_CALLS} questions to {BLOCK_MANAGER} are under way; ask again"
            raise CapacityError(text)
        self._last_call += 1
        call_id = self._last_call
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        try:
            slot = self._slot
            identity = b"" if slot is None else str(slot.generation).encode()
            self._send(identity, msgspec.structs.replace(question, call_id=call_id))
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            text = f"{BLOCK_MANAGER} has not answered within {within_s:g} s; ask again"
            raise PeerError(text) from None
        finally:
            self._calls.pop(call_id, None)

    def _tell(self, message: control.Message) -> None:
        slot = self._slot
        if slot is not None and slot.serves:  # the next one is told when it is ready
            with contextlib.suppress(PeerError):
                self._send(str(slot.generation).encode(), message)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
