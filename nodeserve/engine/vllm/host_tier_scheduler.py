"""The host tier's half in the engine's scheduler: what is looked up, loaded and stored.

Runs in the engine's main thread only. vLLM's own OffloadingConnector is not used: a load that
fails there asserts and ends the engine (get_finished in
vllm/distributed/kv_transfer/kv_connector/v1/offloading/worker.py, 0.32), and a tier whose other end
may die needs loads that fail and are computed again. What is stored is held by the block pool's
reference counts, as leases are.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from nodeserve.engine.tier_client import Lookup, Reservation, TierClient
from nodeserve.engine.vllm.host_tier_orders import TierLoad, TierReport, TierStep, TierStore
from nodeserve.kv.layout import NULL_BLOCK
from nodeserve.wire.kv_tier import ABSENT, KEY_BYTES, KvWelcome

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

DISK_S: Final = 0.5
"""How long a request waits for blocks on disk before it computes them; 2 GB at 4 GB/s."""

STORING_SHARE: Final = 0.25
"""How much of the block pool stores may hold beyond their requests' ends."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tracked:
    """A request that may load or store.

    Blocks before ``offered`` have been offered, or need not be. ``present`` is where the tier had
    its blocks when last asked. ``num_computed`` is what a load of ``lookup`` would follow.
    """

    request: "Request"
    listener: str
    offered: int = 0
    lookup: Lookup | None = None
    present: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_preemptions: int = 0

    def has(self, place: int) -> bool:
        """Whether the tier had that block when it was last asked."""
        return place < len(self.present) and self.present[place] != ABSENT


@dataclass(slots=True)
class _Offer:
    """Blocks that wait for slots, held in the block pool."""

    reservation: Reservation
    keys: list[bytes]
    blocks: list[tuple[int, ...]]


@dataclass(slots=True)
class _Job:
    """Blocks that are being copied into slots, held in the block pool."""

    slots: list[int]
    blocks: list[tuple[int, ...]]
    num_ended: int = 0
    failed: bool = False


@dataclass(slots=True)
class TierCounts:
    """Since the start."""

    loads: int = 0
    load_failures: int = 0
    load_bytes: int = 0
    load_ms: float = 0.0
    loaded_tokens: int = 0
    stores: int = 0
    store_failures: int = 0
    store_bytes: int = 0
    store_ms: float = 0.0
    unpinned_bytes: int = 0
    dropped_blocks: int = 0


class TierScheduler:
    """Loads from and stores into the host tier, for one engine."""

    def __init__(
        self, client: TierClient, pool: "BlockPool", *, block_size: int, num_ranks: int
    ) -> None:
        """Begin with an empty engine.

        Args:
            client: The line to the block manager.
            pool: Its reference counts hold what is stored.
            block_size: Tokens per block, which is what a key stands for.
            num_ranks: Tensor parallel size: each rank copies its part.
        """
        self.client = client
        self.counts = TierCounts()
        self._block_size = block_size
        self._num_ranks = num_ranks
        self._pool = pool
        self._tracked: dict[str, _Tracked] = {}
        self._loading: dict[str, Lookup] = {}
        self._loads: list[TierLoad] = []
        self._offers: list[_Offer] = []
        self._jobs: dict[int, _Job] = {}
        self._last_job = 0
        self._num_held = 0
        self._shown: KvWelcome | None = None

    # ------------------------------------------------------------------- loads

    def arrive(self, request: "Request") -> None:
        """Ask where a new request's blocks are, unless another engine hands them over."""
        self.client.poll()
        params = request.kv_transfer_params or {}
        tracked = _Tracked(request, str(params.get("nodeserve_listener", "")))
        self._tracked[request.request_id] = tracked
        if params.get("do_remote_prefill"):
            # Whoever computed them offers them; what follows is ours to offer.
            tracked.offered = int(params.get("num_tokens", 0)) // self._block_size
        else:
            self._look_up(tracked)

    def look_again(self, request_id: str) -> None:
        """Look for the blocks of a request whose handoff could not be pulled."""
        if (tracked := self._tracked.get(request_id)) is not None:
            tracked.present, tracked.offered = [], 0
            self._look_up(tracked)

    def loadable_tokens(self, request: "Request", num_computed: int) -> int | None:
        """Return how many tokens a load adds to ``num_computed``; None to be asked again.

        The last token is always computed here: its logits are needed.
        """
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return 0
        if request.num_preemptions > tracked.num_preemptions:
            tracked.num_preemptions = request.num_preemptions
            self._give_back(tracked)
            self._look_up(tracked)
        lookup = tracked.lookup
        if lookup is None:
            return 0
        self.client.poll()
        self.client.wait(lookup)
        if not lookup.answered:
            return None
        end = num_computed // self._block_size
        while end < len(lookup.slots) and lookup.slots[end] != ABSENT:
            end += 1
        tracked.num_computed = num_computed
        return max(0, min(end * self._block_size, request.num_tokens - 1) - num_computed)

    def allocated(
        self, request: "Request", blocks: Sequence[Sequence[int]], num_tokens: int
    ) -> None:
        """Ask for the load of the ``num_tokens`` that ``loadable_tokens`` has just named.

        Args:
            request: Whose.
            blocks: All its blocks, by KV cache group.
            num_tokens: 0 asks for nothing.
        """
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.lookup is None or num_tokens == 0:
            return
        first = tracked.num_computed // self._block_size
        behind = -(-(tracked.num_computed + num_tokens) // self._block_size)
        self._loads.append(
            TierLoad(
                request_id=request.request_id,
                slots=tracked.lookup.slots[first:behind],
                keys=[bytes(key) for key in request.block_hashes[first:behind]],
                blocks=list(zip(*(ids[first:behind] for ids in blocks), strict=True)),
            )
        )
        self._loading[request.request_id] = tracked.lookup
        tracked.present, tracked.lookup = tracked.lookup.slots, None
        self.counts.loads += 1
        self.counts.loaded_tokens += num_tokens

    # ------------------------------------------------------------------ stores

    def take_step(self, output: "SchedulerOutput") -> TierStep:
        """Return what the workers copy in this step, and offer the blocks that it completes."""
        self.client.poll()
        step = TierStep(loads=self._loads, stores=self._granted())
        self._loads = []
        if (step.loads or step.stores) and self._shown is not (tier := self.client.welcome):
            step.welcome = self._shown = tier
        for request_id, num_scheduled in output.num_scheduled_tokens.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                self._scheduled(tracked, num_scheduled, output)
        return step

    def _scheduled(self, tracked: _Tracked, num_scheduled: int, output: "SchedulerOutput") -> None:
        """Offer what a request's step completes. Its next step, at the soonest, stores it."""
        request = tracked.request
        if tracked.lookup is not None and tracked.lookup.answered:
            self._give_back(tracked)  # it computes: nothing is loaded any more
        num_full = (request.num_computed_tokens + num_scheduled) // self._block_size
        if num_full <= tracked.offered:
            return
        # With async scheduling the newest tokens are not known yet, and their blocks have no hash.
        num_full = min(num_full, len(request.block_hashes))
        room = int(STORING_SHARE * self._pool.num_gpu_blocks) - self._num_held
        table = _table(request.request_id, output)
        # What is behind a window is gone: it could not be offered when it was computed.
        gone = {place for place, blocks in enumerate(table) if NULL_BLOCK in blocks}
        places, num_groups = range(tracked.offered, num_full), len(table[0]) if table else 1
        for run in _consecutive([i for i in places if i not in gone and not tracked.has(i)]):
            fitting = run[: max(0, room) // num_groups]
            if fitting and fitting.stop <= len(table):
                self._offer(tracked, fitting, [table[place] for place in fitting])
                room -= len(fitting) * num_groups
            if len(fitting) < len(run):
                num_full = fitting.stop  # the rest in a later step, if there is one
                break
        tracked.offered = max(tracked.offered, num_full)

    def _offer(self, tracked: _Tracked, places: range, blocks: list[tuple[int, ...]]) -> None:
        hashes = tracked.request.block_hashes
        keys = [bytes(hashes[place]) for place in places]
        parent = bytes(hashes[places[0] - 1]) if places[0] else b""
        reservation = self.client.reserve(tracked.listener, b"".join(keys), parent)
        if reservation is None:
            return
        self._hold(blocks)
        self._offers.append(_Offer(reservation, keys, blocks))

    def _granted(self) -> list[TierStore]:
        """Return the stores whose slots have come; let go of blocks that get none."""
        stores, waiting = [], []
        for offer in self._offers:
            if not offer.reservation.answered:
                waiting.append(offer)
                continue
            slots = offer.reservation.slots or [ABSENT] * len(offer.blocks)
            self._let_go([b for b, slot in zip(offer.blocks, slots, strict=True) if slot == ABSENT])
            given = [place for place, slot in enumerate(slots) if slot != ABSENT]
            if given:
                self._last_job += 1
                store = TierStore(
                    job_id=self._last_job,
                    slots=[slots[place] for place in given],
                    keys=[offer.keys[place] for place in given],
                    blocks=[offer.blocks[place] for place in given],
                )
                self._jobs[store.job_id] = _Job(store.slots, store.blocks)
                stores.append(store)
        self._offers = waiting
        return stores

    # --------------------------------------------------------------------- ends

    def take_output(self, output: "KVConnectorOutput", report: TierReport) -> None:
        """Take what the workers report: loads and stores that are over."""
        failed = output.failed_recving or set()
        # Before what tells the block manager of it: the ends of loads and stores.
        self.client.count_read(report.load_bytes, report.load_ms / 1e3)
        self.client.count_written(report.store_bytes, report.store_ms / 1e3)
        for request_id in (output.finished_recving or set()) & self._loading.keys():
            self.client.release(self._loading.pop(request_id))
            self.counts.load_failures += request_id in failed
        counts = self.counts
        counts.load_bytes += report.load_bytes
        counts.load_ms += report.load_ms
        counts.store_bytes += report.store_bytes
        counts.store_ms += report.store_ms
        counts.unpinned_bytes += report.unpinned_bytes
        for job_id, num_ranks in report.ended.items():
            job = self._jobs[job_id]
            job.num_ended += num_ranks
            job.failed |= job_id in report.failed
            if job.num_ended == self._num_ranks:
                self._end_job(job_id)

    def finish(self, request: "Request") -> None:
        """Forget a request. A load that still runs is waited for; offers and stores go on."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is not None:
            self._give_back(tracked)
            num_full = min(
                request.num_computed_tokens // self._block_size, len(request.block_hashes)
            )
            self.counts.dropped_blocks += max(0, num_full - tracked.offered)

    @property
    def is_busy(self) -> bool:
        """Whether the engine must go on stepping for the tier's sake."""
        return bool(self._offers or self._jobs)

    def stats(self) -> dict[str, int | float]:
        """Return counts since the start, and how many blocks stores hold now."""
        return asdict(self.counts) | asdict(self.client.counts) | {"held_blocks": self._num_held}

    @property
    def num_held_blocks(self) -> int:
        """How many blocks of the pool are held for stores."""
        return self._num_held

    def close(self) -> None:
        """Hang up."""
        self.client.close()

    def _end_job(self, job_id: int) -> None:
        job = self._jobs.pop(job_id)
        if job.failed:
            self.counts.store_failures += 1
            self.client.abandon(job.slots)
        else:
            self.counts.stores += len(job.slots)
            self.client.publish(job.slots)
        self._let_go(job.blocks)

    def _look_up(self, tracked: _Tracked) -> None:
        request = tracked.request
        if request.skip_reading_prefix_cache:
            return
        # The last token is computed here, so that a block that only it completes is no use.
        num_keys = (request.num_tokens - 1 + self._block_size - 1) // self._block_size
        keys = b"".join(request.block_hashes[:num_keys])
        if len(keys) == KEY_BYTES * min(num_keys, len(request.block_hashes)):
            tracked.lookup = self.client.lookup(tracked.listener, keys, disk_s=DISK_S)

    def _give_back(self, tracked: _Tracked) -> None:
        if tracked.lookup is not None:
            tracked.present = tracked.lookup.slots
            self.client.release(tracked.lookup)
            tracked.lookup = None

    def _hold(self, blocks: list[tuple[int, ...]]) -> None:
        held = [self._pool.blocks[block] for of_groups in blocks for block in of_groups]
        self._pool.touch(held)
        self._num_held += len(held)

    def _let_go(self, blocks: list[tuple[int, ...]]) -> None:
        held = [self._pool.blocks[block] for of_groups in blocks for block in of_groups]
        # As vLLM frees a request: the last block is the first to be reused.
        self._pool.free_blocks(held[::-1])
        self._num_held -= len(held)


def _table(request_id: str, output: "SchedulerOutput") -> list[tuple[int, ...]]:
    """Return the block ids of a request that is scheduled in this step, a group's beside another's.

    Groups may be behind each other by a block that is not complete.
    """
    state = output.kv_connector_block_state
    tables = None if state is None else state.get_block_ids(request_id)
    return list(zip(*tables, strict=False)) if tables else []


def _consecutive(places: list[int]) -> list[range]:
    """Return ascending places as runs without a gap: each is offered behind its parent."""
    runs: list[range] = []
    for place in places:
        if runs and runs[-1].stop == place:
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs
