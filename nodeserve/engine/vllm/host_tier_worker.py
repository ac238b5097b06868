"""The host tier's half beside the model: copies blocks out of slots and into them."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.clock import Clock
from nodeserve.engine.vllm.block_runs import BlockRuns, Planner
from nodeserve.engine.vllm.host_tier_orders import TierLoad, TierReport, TierStep, TierStore
from nodeserve.errors import PeerError
from nodeserve.kv import page_copy
from nodeserve.kv.layout import NULL_BLOCK, CopyRun, PoolGeometry
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
class _Outcome:
    order: TierLoad | TierStore
    num_bytes: int
    took_ms: float
    failed: bool


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
        self._lanes = {TierLoad: _Lane("kv-tier-loads", make_copier(), self._copy)}
        self._lanes[TierStore] = _Lane("kv-tier-stores", make_copier(), self._copy)

    def start(self, step: TierStep) -> None:
        """Begin this step's loads and stores, behind all that the device was asked to do so far.

        What is loaded overwrites blocks that earlier steps may still read; what is stored was
        computed by earlier steps.
        """
        if step.welcome is not None:
            self._map(step.welcome)
        for order in (*step.loads, *step.stores):
            lane = self._lanes[type(order)]
            lane.put(_Copy(order, self._memory, lane.copier.fence()))

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads are over, and those among them that failed."""
        finished, failed = set(), set()
        report = self._report
        while not self._done.empty():
            outcome = self._done.get()
            took_ms = outcome.took_ms if self._rank == 0 else 0.0
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

    def close(self) -> None:
        """Stop copying."""
        for lane in self._lanes.values():
            lane.close()

    def _map(self, welcome: KvWelcome) -> None:
        try:
            self._memory = TierMemory(
                SlotShape(welcome.num_slots, welcome.slot_stride, welcome.namespace),
                welcome.slots_per_arena,
                welcome.arenas,
                welcome.directory,
            )
        except PeerError as error:
            self._memory = None
            _logger.warning("kv_tier_not_mapped cause=%s", error)

    def _copy(self, copier: Copier, copy: _Copy) -> None:
        start_s, num_bytes, failed = self._clock.now_s(), 0, False
        order = copy.order
        try:
            num_bytes = self._copied(copier, copy)
        except PeerError as error:
            failed = True
            _logger.warning("kv_tier_copy_failed kind=%s cause=%s", type(order).__name__, error)
        except Exception:
            # Whatever happened, it must be reported: its blocks are held until then.
            failed = True
            _logger.exception("kv_tier_copy_failed kind=%s", type(order).__name__)
        took_ms = (self._clock.now_s() - start_s) * 1e3
        self._done.put(_Outcome(order, num_bytes, took_ms, failed))

    def _copied(self, copier: Copier, copy: _Copy) -> int:
        """Copy and return the bytes; the slots were and are what they were taken for."""
        order, memory = copy.order, copy.memory
        if memory is None:
            raise PeerError("the host tier's memory is not mapped; the prompt is computed here")
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
    """One thread that copies in the order in which it is asked to."""

    def __init__(self, name: str, copier: Copier, work: Callable[[Copier, _Copy], None]) -> None:
        self.copier = copier
        self._work = work
        self._orders: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, copy: _Copy) -> None:
        self._orders.put(copy)

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join(STOP_DEADLINE_S)

    def _run(self) -> None:
        while (copy := self._orders.get()) is not None:
            self._work(self.copier, copy)
        self.copier.close()


def _planner(plan: Callable[..., list[CopyRun]], group: int, offset: int) -> Planner:
    """Return the plan for a group's part of a slot."""
    return lambda geometry, block, base: plan(geometry, block, base + offset, group=group)


def _entries(memory: TierMemory, order: TierLoad | TierStore, state: SlotState) -> Sequence[object]:
    pairs = zip(order.slots, order.keys, strict=True)
    return [memory.directory.require(slot, key, state) for slot, key in pairs]
