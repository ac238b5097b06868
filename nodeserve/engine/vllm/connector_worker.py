"""The connector's half beside the model: shares this rank's KV pool, and loads from peers'."""

import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from vllm.v1.kv_cache_interface import KVCacheConfig

from nodeserve.clock import Clock
from nodeserve.engine.vllm import kv_groups
from nodeserve.engine.vllm.connector_messages import Load, LoadReport, PoolHandshake
from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.engine.vllm.host_tier_worker import TierWorker
from nodeserve.engine.vllm.kv_memory import HostKvMemory, RankFacts, undivided
from nodeserve.engine.vllm.loader import KvLoader
from nodeserve.errors import PeerError
from nodeserve.kv import layout
from nodeserve.transfer import probe
from nodeserve.transfer.base import Fence

ENDED_PEERS_EVERY_S: Final = 5.0
"""How often pools of ended peers are looked for, while any pool is mapped."""

STOP_DEADLINE_S: Final = 5.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    load: Load
    num_bytes: int
    load_ms: float
    failed: bool


class WorkerSide:
    """Loads, by a thread of its own when the request can wait and at once when it cannot.

    The queue of loads is bounded by the scheduler: every waiting load holds KV blocks.
    """

    def __init__(
        self, config: KVCacheConfig, ranks: RankFacts, memory: HostKvMemory, *, clock: Clock
    ) -> None:
        """Prepare to share the pool of ``config`` in ``memory``; vLLM allocates it later."""
        self._config = config
        self._ranks = ranks
        self._clock = clock
        self.memory = memory
        self._description: PoolDescription | None = None
        self._undivided: dict[str, str] = {}
        self._loader: KvLoader | None = None
        self._lock = threading.Lock()  # the loader's
        self._jobs: queue.SimpleQueue[tuple[Load, Fence | None] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        self._bad_blocks: set[int] = set()
        self._report = LoadReport()
        self._thread: threading.Thread | None = None
        self._fences: list[Fence | None] = []

    def register(self, views: dict[str, torch.Tensor]) -> None:
        """Take vLLM's tensors per layer, and be ready to load.

        Raises:
            ConfigError: Their bytes lie so that they cannot be handed over.
        """
        if kv_groups.problem(self._config):
            return  # the scheduler's half refuses it, and is heard with several ranks too
        self._undivided = undivided(self._config, views, self._ranks)
        self._description = self.memory.describe(self._config, views, self._ranks)
        self._loader = KvLoader(
            layout.from_plain(self._description.geometry),
            self.memory.importers(),
            rank=self._ranks.rank,
        )
        self._thread = threading.Thread(
            target=self._copy_parked, args=(self._loader,), name="kv-loads", daemon=True
        )
        self._thread.start()

    def tier_worker(self) -> TierWorker:
        """Return the host tier's half over our pool; only after ``register``."""
        return TierWorker(
            layout.from_plain(self._description.geometry),
            self.memory.pool_address,
            self.memory.copier,
            rank=self._ranks.rank,
            clock=self._clock,
        )

    def probe(self, pools: Sequence[PoolDescription]) -> dict[str, Any]:
        """Measure how fast a peer's pool can be read; our own is left alone.

        Returns:
            ``transport`` and the figures of transfer.probe.

        Raises:
            PeerError: It cannot be read, or there is no memory to read it into.
        """
        handle = pools[self._ranks.rank % len(pools)].handle
        transport = str(handle.get("transport"))
        with self._lock, self.memory.scratch(probe.SCRATCH_BYTES) as (address, num_bytes):
            importer = self.memory.importers_into(address, num_bytes).get(transport)
            if importer is None:
                text = f"a peer shares KV by {transport}, which this worker cannot read"
                raise PeerError(text)
            pool = importer.open(handle)
            try:
                size = (int(handle["bytes"]), num_bytes)
                figures = probe.measure(pool, *size, self._clock.now_s)
            finally:
                pool.close()
        return {"transport": transport, **figures}

    def handshake(self) -> PoolHandshake | None:
        """Return where our pool lies; None before it was allocated."""
        if self._description is None:
            return None
        return PoolHandshake(self._description, self._undivided)

    def begin_step(self, loads: Sequence[Load]) -> None:
        """Note what this step's loads must come after: all that earlier steps do on the device.

        vLLM starts parked loads behind the step's own forward, which writes to none of their
        blocks: they need not wait for it.
        """
        self._fences = [self.memory.fence() for _ in loads]

    def start(self, loads: Iterable[Load]) -> None:
        """Begin parked loads; carry out the others before returning."""
        for load in loads:
            fence = self._fences.pop() if self._fences else self.memory.fence()
            if load.parked:
                self._jobs.put((load, fence))
            else:
                self._done.put(self._copy(self._loader, load, fence))

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Return the requests whose parked loads are over, and those among them that failed."""
        finished, failed = set(), set()
        while not self._done.empty():
            outcome = self._done.get()
            self._report.num_bytes += outcome.num_bytes
            self._report.load_ms += outcome.load_ms if self._ranks.rank == 0 else 0.0
            if outcome.load.parked:
                finished.add(outcome.load.request_id)
                if outcome.failed:
                    failed.add(outcome.load.request_id)
            elif outcome.failed:
                self._report.unparked_failures += 1
                self._bad_blocks.update(*(part.blocks for part in outcome.load.parts))
        return finished, failed

    def take_bad_blocks(self) -> set[int]:
        """Return the blocks of failed loads that this step's forward has read as if good."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def take_report(self) -> LoadReport | None:
        """Return what was loaded since the last call; None for nothing."""
        if self._report == LoadReport():
            return None
        report, self._report = self._report, LoadReport()
        return report

    def close(self) -> None:
        """Stop loading and let go of peers' pools."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(STOP_DEADLINE_S)

    def _copy_parked(self, loader: KvLoader) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=ENDED_PEERS_EVERY_S if loader.num_peers else None)
            except queue.Empty:
                with self._lock:
                    loader.drop_ended()
                continue
            if job is None:
                with self._lock:
                    loader.close()
                return
            self._done.put(self._copy(loader, *job))

    def _copy(self, loader: KvLoader, load: Load, fence: Fence | None) -> _Outcome:
        start_s, num_bytes, failed = self._clock.now_s(), 0, False
        try:
            with self._lock:
                self.memory.follow(fence)
                num_bytes = loader.load(load.handoff, load.parts)
        except PeerError as error:
            failed = True
            _logger.warning("kv_load_failed request=%s cause=%s", load.request_id, error)
        except Exception:
            # Whatever happened, the load must be reported: its blocks are held until then.
            failed = True
            _logger.exception("kv_load_failed request=%s", load.request_id)
        load_ms = (self._clock.now_s() - start_s) * 1e3
        return _Outcome(load, num_bytes, load_ms, failed)
