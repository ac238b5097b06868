"""Which engines may use the host tier: those whose blocks mean the same to each other.

The first engine fixes the shape of a slot and the namespace. One with others is refused while
any engine uses the tier, and begins a new tier when nobody does any more.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from nodeserve.block_manager.known_engines import KnownEngines
from nodeserve.block_manager.namespace import Cancelled, WeightsDigests, namespace_of
from nodeserve.block_manager.tier_desk import TierDesk
from nodeserve.clock import Clock
from nodeserve.errors import NodeserveError
from nodeserve.kv.tier_events import EngineGone, EngineJoined
from nodeserve.wire.kv_tier import (
    KvHello,
    KvLookup,
    KvReserve,
    Request,
    split_keys,
    split_slots,
)

MAX_ENGINES: Final = 256
MAX_GONE: Final = 1024
MAX_REFUSALS_KEPT: Final = 64
MAX_KEPT: Final = 1024
"""Messages of an engine that are kept until its hello is answered."""

MAX_FORMAT_BYTES: Final = 1024
MAX_WORKER_CHARS: Final = 256
MAX_BLOCK_BYTES: Final = 1 << 40

_LOG: Final = logging.getLogger(__name__)


class Tiers(Protocol):
    """Who has the tier and speaks to engines."""

    desk: TierDesk | None

    async def open_tier(
        self, hello: KvHello, namespace: bytes, known: Callable[[], frozenset[int] | None]
    ) -> None:
        """Begin a tier of this shape; raises CapacityError where there is no room for it."""
        ...

    def has_foreign_slots(self, hello: KvHello, namespace: bytes) -> bool:
        """Return whether a predecessor's tier lies in the memory, of another shape or name."""
        ...

    def close_tier(self) -> None:
        """End the tier that nobody uses."""
        ...

    def serve(self, generation: int, request: Request) -> None:
        """Do what an engine that was let in has said."""
        ...

    def welcome(self, generation: int) -> None:
        """Tell an engine how it may use the tier."""
        ...

    def refuse(self, generation: int, reason: str) -> None:
        """Tell an engine that it gets none."""
        ...


class Admission:
    """Lets engines in, once it is known what their weights really hold; make it in a loop.

    Attributes:
        refused: Why engines that live get no tier, by generation.
        model: The model of the tier there is.
    """

    def __init__(
        self, tiers: Tiers, clock: Clock, *, state_dir: Path, runtime_dir: Path, grace_s: float
    ) -> None:
        self.refused: dict[int, str] = {}
        self.model = ""
        self._tiers = tiers
        self._clock = clock
        self._grace_until_s = clock.now_s() + grace_s
        self._digests = WeightsDigests(state_dir / "weights-digests")
        self._pool = ThreadPoolExecutor(1, "weights")
        self._digesting: dict[str, asyncio.Task[None]] = {}
        self._pending: dict[int, KvHello] = {}
        self._ready: dict[int, bytes] = {}
        self._kept: dict[int, list[Request]] = {}
        self._opening: asyncio.Task[None] | None = None
        self._gone: deque[int] = deque(maxlen=MAX_GONE)
        self._file = KnownEngines(runtime_dir / "kv-engines")
        self._left = self._file.read()
        self._has_opened = False
        self._known = set(self._left or ())

    def hello(self, generation: int, hello: KvHello) -> None:
        """Take an engine's hello; it is answered when its weights are known."""
        if (problem := self._problem(generation, hello)) is not None:
            self._refuse(generation, problem)
            return
        desk = self._tiers.desk
        if desk is not None and generation in desk.tier.engines:
            self._tiers.welcome(generation)
            return
        self._pending[generation] = hello
        self._kept[generation] = []  # what it said before, the hello takes account of
        self._ready.pop(generation, None)
        if hello.model not in self._digesting:
            task = asyncio.get_running_loop().create_task(self._digest(hello.model))
            self._digesting[hello.model] = task

    @property
    def is_opening(self) -> bool:
        """Whether what a predecessor left is being taken over, for those who said hello."""
        return self._opening is not None

    def keep(self, generation: int, request: Request) -> bool:
        """Keep what an engine says whose hello is still to be answered; return whether it is one.

        It may end what the hello says it reads and writes: heard by nobody, that would be held
        until the engine's own end. One that says too much is to greet anew; questions are not
        kept, for nobody waits for their answers so long.
        """
        if generation not in self._pending:
            return False
        if not isinstance(request, KvLookup | KvReserve):
            self._kept[generation].append(request)
        if len(self._kept[generation]) > MAX_KEPT:
            self._forget(generation)
            return False
        return True

    def gone(self, generation: int) -> None:
        """Take note that an engine's processes are dead."""
        if generation not in self._gone:
            self._gone.append(generation)
        self._forget(generation)
        self.refused.pop(generation, None)
        if self._left is not None:
            self._left -= {generation}
        if self._tiers.desk is not None:
            self._tiers.desk.tell(EngineGone(generation))
        if generation in self._known:
            self._known.discard(generation)
            self._file.write(self._known)

    def look_again(self) -> None:
        """Let in who had to wait for the tier to be in no use; call it now and then."""
        for generation, namespace in list(self._ready.items()):
            self._admit(generation, namespace)

    def close(self) -> None:
        """Digest no more."""
        self._digests.cancel()
        tasks = [*self._digesting.values(), *([self._opening] if self._opening else [])]
        for task in tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _problem(self, generation: int, hello: KvHello) -> str | None:
        if hello.generation != generation:
            return f"it says it is generation {hello.generation} on the socket of {generation}"
        if generation in self._gone:
            return f"generation {generation} was declared dead"
        desk = self._tiers.desk
        known = self._pending.keys() | (desk.tier.engines.keys() if desk else set())
        if generation not in known and len(known) >= MAX_ENGINES:
            return f"{MAX_ENGINES} engines use the host tier already"
        if not 0 < hello.block_bytes <= MAX_BLOCK_BYTES or len(hello.kv_format) > MAX_FORMAT_BYTES:
            return (
                f"blocks of {hello.block_bytes} bytes and a format of {len(hello.kv_format)} "
                "bytes cannot be"
            )
        with contextlib.suppress(ValueError):
            split_slots(hello.reading)
            if len(split_slots(hello.writing)) == len(split_keys(hello.writing_keys)):
                return None
        return "what it reads and writes is no list of slots and their keys"

    async def _digest(self, model: str) -> None:
        loop = asyncio.get_running_loop()
        weights, problem = b"", ""
        try:
            weights = await loop.run_in_executor(self._pool, self._digests.digest, model)
        except NodeserveError as error:
            problem = str(error)
        except Cancelled:
            return
        finally:
            del self._digesting[model]
        for generation, hello in list(self._pending.items()):
            if hello.model == model and problem:
                self._refuse(generation, problem)
            elif hello.model == model:
                namespace = namespace_of(weights, hello.kv_format)
                self._ready[generation] = namespace
                self._admit(generation, namespace)

    def _admit(self, generation: int, namespace: bytes) -> None:
        """Let an engine in, refuse it, or let it wait for ``look_again``."""
        hello, desk = self._pending[generation], self._tiers.desk
        if self._opening is not None:
            return
        if desk is not None and not _fits(desk, hello, namespace):
            if desk.tier.engines:
                self._refuse(generation, _difference(desk, hello, namespace))
                return
            if desk.tier.in_use:
                return
            self._tiers.close_tier()
            desk = None
        if desk is None:
            if not self._must_wait(hello, namespace):
                opening = self._open(generation, hello, namespace)
                self._opening = asyncio.get_running_loop().create_task(opening)
            return
        kept = self._kept[generation]
        self._forget(generation)
        self.refused.pop(generation, None)
        self._known.add(generation)
        self._file.write(self._known)
        joined = EngineJoined(
            generation,
            hello.worker[:MAX_WORKER_CHARS],
            split_slots(hello.reading),
            split_slots(hello.writing),
            split_keys(hello.writing_keys),
        )
        desk.tell(joined)
        for request in kept:
            self._tiers.serve(generation, request)
        _LOG.info("engine_welcome worker=%s generation=%d", hello.worker, generation)
        self._tiers.welcome(generation)

    async def _open(self, generation: int, hello: KvHello, namespace: bytes) -> None:
        """Begin the tier that an engine needs; then let in whoever it fits."""
        try:
            await self._tiers.open_tier(hello, namespace, lambda: self._left)
        except NodeserveError as error:
            if generation in self._pending:
                self._refuse(generation, str(error))
        else:
            self.model = hello.model
            self._left, self._has_opened = None, True
        finally:
            self._opening = None
        self.look_again()

    def _must_wait(self, hello: KvHello, namespace: bytes) -> bool:
        """Return whether engines of a predecessor may still use the memory in another way."""
        is_over = self._clock.now_s() >= self._grace_until_s or self._left == frozenset()
        if self._has_opened or is_over:
            return False
        return self._tiers.has_foreign_slots(hello, namespace)

    def _forget(self, generation: int) -> None:
        """Answer an engine's hello no more."""
        self._pending.pop(generation, None)
        self._ready.pop(generation, None)
        self._kept.pop(generation, None)

    def _refuse(self, generation: int, reason: str) -> None:
        self._forget(generation)
        self.refused[generation] = reason
        while len(self.refused) > MAX_REFUSALS_KEPT:
            del self.refused[next(iter(self.refused))]
        _LOG.warning("engine_refused generation=%d reason=%r", generation, reason)
        self._tiers.refuse(generation, reason)


def _fits(desk: TierDesk, hello: KvHello, namespace: bytes) -> bool:
    return desk.namespace == namespace and desk.shape.block_bytes == hello.block_bytes


def _difference(desk: TierDesk, hello: KvHello, namespace: bytes) -> str:
    if desk.shape.block_bytes != hello.block_bytes:
        what = f"has blocks of {desk.shape.block_bytes} bytes, this engine's {hello.block_bytes}"
    else:
        theirs, ours = desk.namespace.hex()[:12], namespace.hex()[:12]
        what = f"is of namespace {theirs}, this engine's is {ours}: other weights or KV format"
    return f"the host tier {what}; give all workers one model and one format, or no host tier"
