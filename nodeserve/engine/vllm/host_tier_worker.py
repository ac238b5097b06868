"""The host tier's half beside the model: copies blocks out of slots and into them."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodeserve.clock import Clock
from nodeserve.engine.vllm.block_runs import BlockRuns, Planner
from nodeserve.engine.vllm.host_tier_orders import TierLoad, TierReport, TierStep, TierStore
from nodeserve.errors import PeerError
from nodeserve.kv import page_copy
from nodeserve.kv.layout import NULL_BLOCK, CopyRun, PoolGeometry
from nodeserve.transfer import probe
from nodeserve.transfer.base import AddressRun, Copier, Fence
from nodeserve.transfer.slot_directory import SlotShape, SlotState
from nodeserve.transfer.tier_memory import TierMemory
from nodeserve.wire.kv_tier import KvWelcome

STOP_DEADLINE_S: Final = 5.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A load or a store with the memory that its slots lie in, to begin behind ``after``."""

    order: TierLoad | TierStore
    memory: TierMemory | None
    after: Fence | None


@dataclass(frozen=True, slots=True)
class _Pinning:
    """What a load has found not to be pinned: whoever loads from there next finds it pinned."""

    slots: Sequence[int]
    memory: TierMemory


@dataclass(frozen=True, slots=True)
class _Outcome:
    order: TierLoad | TierStore
    num_bytes: int
    took_ms: float
    failed: bool
    was_pinned: bool


class TierWorker:
    """Loads and stores, each kind in a thread of its own: a request waits for the former.

    Both queues are bounded by the scheduler: every load and every store holds KV blocks.
    """

    def __init__(
        self,
        geometry: PoolGeometry,
        pool_address: int,
        make_copier: Callable[[], Copier],
        *,
        rank: int,
        clock: Clock,
    ) -> None:
        """Copy between slots and the pool at ``pool_address``.

        Args:
            geometry: The pool's.
            pool_address: Where it begins in this process.
            make_copier: Called once per thread.
            rank: Our tensor parallel rank.
            clock: For what copies take.
        """
        groups = list(enumerate(page_copy.group_offsets(geometry)[:-1]))
        self._loaded, self._stored = (
            [BlockRuns.of(geometry, _planner(plan, *each)) for each in groups]
            for plan in (page_copy.canonical_runs, page_copy.canonical_writes)
        )
        self._pool_address = pool_address
        self._rank = rank
        self._clock = clock
        self._memory: TierMemory | None = None
        self._done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        self._report = TierReport()
        self._fences: list[Fence | None] = []
        self._was_refused = False
        self._make_copier = make_copier
        # The lane of loads ends first: the other one's copier pins for both.
        self._loads = _Lane("kv-tier-loads", make_copier(), self._work)
        self._stores = _Lane("kv-tier-stores", make_copier(), self._work)

    def begin_step(self, step: TierStep) -> None:
        """Note what this step's loads must come after: all that earlier steps do on the device.

        They overwrite blocks that earlier steps may still read. vLLM starts them behind the step's
        own forward, which touches none of these blocks: they need not wait for it.
        """
        self._fences = [self._loads.copier.fence() for _ in step.loads]

    def start(self, step: TierStep) -> None:
        """Begin this step's loads and stores.

        Stores come behind all that the device was asked to do so far: what they copy was computed
        by earlier steps.
        """
        if step.welcome is not None:
            self._memory = self._mapped(step.welcome)
        for load in step.loads:
            fence = self._fences.pop() if self._fences else self._loads.copier.fence()
            self._loads.put(_Copy(load, self._memory, fence))
        for store in step.stores:
            self._stores.put(_Copy(store, self._memory, self._stores.copier.fence()))

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads are over, and those among them that failed."""
        finished, failed = set(), set()
        report = self._report
        while not self._done.empty():
            outcome = self._done.get()
            took_ms = outcome.took_ms if self._rank == 0 else 0.0
            report.unpinned_bytes += 0 if outcome.was_pinned else outcome.num_bytes
            match outcome.order:
                case TierLoad(request_id=request_id):
                    report.load_bytes += outcome.num_bytes
                    report.load_ms += took_ms
                    finished.add(request_id)
                    if outcome.failed:
                        failed.add(request_id)
                case TierStore(job_id=job_id):
                    report.store_bytes += outcome.num_bytes
                    report.store_ms += took_ms
                    report.ended[job_id] = 1
                    if outcome.failed:
                        report.failed.add(job_id)
        return finished, failed

    def take_report(self) -> TierReport:
        """Return what has ended since the last call."""
        report, self._report = self._report, TierReport()
        return report

    def measure(self, welcome: KvWelcome, into: int, num_bytes: int) -> dict[str, Any]:
        """Measure how fast blocks come from the tier, between two steps.

        Args:
            welcome: The tier's.
            into: The address of ``num_bytes`` bytes of the pool's kind of memory.
            num_bytes: At least 64 KiB.

        Returns:
            ``transport`` and the figures of transfer.probe.

        Raises:
            PeerError: The tier's memory is not there.
        """
        memory = self._memory = _there(self._mapped(welcome))
        address, arena_bytes = memory.arenas[0]
        size = min(num_bytes, arena_bytes)
        slots = range(min(welcome.slots_per_arena, -(-size // welcome.slot_stride)))
        size = min(size, len(slots) * welcome.slot_stride)
        is_pinned = self._pin(memory, slots)
        copier = self._make_copier()
        try:
            arena = probe.OwnMemory(copier, address, into)
            figures = probe.measure(arena, size, size, self._clock.now_s)
        finally:
            copier.close()
        kind = "host" if copier.pinner is None else "pinned_host" if is_pinned else "pageable_host"
        return {"transport": kind, **figures}

    def close(self) -> None:
        """Stop copying and unpin."""
        self._loads.close()
        self._stores.close()
        self._memory = None

    def _mapped(self, welcome: KvWelcome) -> TierMemory | None:
        try:
            return TierMemory(
                SlotShape(welcome.num_slots, welcome.slot_stride, welcome.namespace),
                welcome.slots_per_arena,
                welcome.arenas,
                welcome.directory,
                self._memory,
            )
        except PeerError as error:
            _logger.warning("kv_tier_not_mapped cause=%s", error)
            return None

    def _pin(self, memory: TierMemory, slots: Sequence[int]) -> bool:
        """Return whether ``slots`` are pinned by now, or need not be."""
        pinner = self._stores.copier.pinner
        if pinner is None or memory.is_pinned(slots):
            return True
        start_s = self._clock.now_s()
        try:
            num_bytes = memory.pin(slots, pinner)
        except PeerError as error:
            level = logging.DEBUG if self._was_refused else logging.WARNING
            self._was_refused = True
            text = "kv_tier_not_pinned cause=%s (blocks there are copied several times slower)"
            _logger.log(level, text, error)
            return False
        if num_bytes:
            took_ms = (self._clock.now_s() - start_s) * 1e3
            _logger.info("kv_tier_pinned bytes=%d took_ms=%.0f", num_bytes, took_ms)
        return memory.is_pinned(slots)

    def _work(self, copier: Copier, job: "_Copy | _Pinning") -> None:
        if isinstance(job, _Pinning):
            self._pin(job.memory, job.slots)
        else:
            self._copy(copier, job)

    def _copy(self, copier: Copier, copy: _Copy) -> None:
        start_s, num_bytes, failed, was_pinned = self._clock.now_s(), 0, False, True
        order = copy.order
        try:
            memory = _there(copy.memory)
            was_pinned = self._is_ready(memory, order)
            num_bytes = self._copied(copier, copy, memory)
            if not was_pinned and isinstance(order, TierLoad):
                self._stores.put(_Pinning(order.slots, memory))
        except PeerError as error:
            failed = True
            _logger.warning("kv_tier_copy_failed kind=%s cause=%s", type(order).__name__, error)
        except Exception:
            # Whatever happened, it must be reported: its blocks are held until then.
            failed = True
            _logger.exception("kv_tier_copy_failed kind=%s", type(order).__name__)
        took_ms = (self._clock.now_s() - start_s) * 1e3
        self._done.put(_Outcome(order, num_bytes, took_ms, failed, was_pinned))

    def _is_ready(self, memory: TierMemory, order: TierLoad | TierStore) -> bool:
        """Return whether an order's slots are pinned: a store waits for that, a load does not."""
        if isinstance(order, TierStore):
            return self._pin(memory, order.slots)
        return self._stores.copier.pinner is None or memory.is_pinned(order.slots)

    def _copied(self, copier: Copier, copy: _Copy, memory: TierMemory) -> int:
        """Copy and return the bytes; the slots were and are what they were taken for."""
        order = copy.order
        state = SlotState.READY if isinstance(order, TierLoad) else SlotState.RESERVED
        before = _entries(memory, order, state)
        addresses = [memory.address(slot) for slot in order.slots]
        runs: list[AddressRun] = []
        for group, blocks in enumerate(zip(*order.blocks, strict=True)):
            pairs = [pair for pair in zip(addresses, blocks, strict=True) if pair[1] != NULL_BLOCK]
            if isinstance(order, TierLoad):
                runs += self._loaded[group].out_of_slots(pairs, self._pool_address)
            else:
                runs += self._stored[group].into_slots(pairs, self._pool_address)
        copier.copy(runs, copy.after)
        if _entries(memory, order, state) != before:
            raise PeerError("a slot changed while it was copied; the prompt is computed here")
        return sum(run.length for run in runs)


class _Lane:
    """One thread that does what it is asked to in that order."""

    def __init__(
        self, name: str, copier: Copier, work: Callable[[Copier, _Copy | _Pinning], None]
    ) -> None:
        self.copier = copier
        self._work = work
        self._jobs: queue.SimpleQueue[_Copy | _Pinning | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: _Copy | _Pinning) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(STOP_DEADLINE_S)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._work(self.copier, job)
            del job  # or its memory would stay mapped until the next one
        self.copier.close()


def _there(memory: TierMemory | None) -> TierMemory:
    if memory is None:
        raise PeerError("the host tier's memory is not mapped: see the worker's log")
    return memory


def _planner(plan: Callable[..., list[CopyRun]], group: int, offset: int) -> Planner:
    """Return the plan for a group's part of a slot."""
    return lambda geometry, block, base: plan(geometry, block, base + offset, group=group)


def _entries(memory: TierMemory, order: TierLoad | TierStore, state: SlotState) -> Sequence[object]:
    pairs = zip(order.slots, order.keys, strict=True)
    return [memory.directory.require(slot, key, state) for slot, key in pairs]
