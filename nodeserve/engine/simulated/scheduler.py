"""What the simulated engine computes in each step: continuous batching over paged KV.

Follows vLLM's V1 scheduler: requests that decode go first, one token each; what is left of the
token budget goes to prefills, in chunks; then waiting requests are admitted, lowest priority
number first and oldest first among equals. When KV runs out, the last admitted of the lowest
rank loses its blocks and starts over. Starts nothing and reads no clock.
"""

import heapq
from collections import deque
from typing import Any

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.batch import Unrecorded, chunks_of, work_of
from nodeserve.engine.simulated.handoffs import Handoffs
from nodeserve.engine.simulated.kv_blocks import CacheEvent, KvBlocks, Stored
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.simulated.tier import NoTier
from nodeserve.errors import InvariantError
from nodeserve.perf_model.latency import StepWork
from nodeserve.wire.accounting import Member


class Scheduler:
    """One engine's requests.

    ``plan`` begins a step and ``finish_step`` ends it; in between the step takes its time and
    requests may be added, aborted and released.

    Attributes:
        handoffs: Leases and pulls; whoever answers utility calls uses it.
        tier: What is kept below the GPU.
    """

    def __init__(
        self, limits: Limits, tier: NoTier | None = None, changes: Unrecorded | None = None
    ) -> None:
        self.tier = tier or NoTier()
        self._changes = changes or Unrecorded()
        self._limits = limits
        self._kv = KvBlocks(
            limits.num_blocks, limits.block_size, prefix_caching=limits.prefix_caching
        )
        self.handoffs = Handoffs(limits, self._kv)
        self._live: dict[str, Sequence] = {}
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._loaded: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._needs_block: list[Sequence] = []
        self._rows: list[wire.Row] = []
        self._rows_are_stale = False
        self._pull_s = 0.0
        self._is_short_of_blocks = False
        self._prefix_stats = wire.PrefixStats()

    # ------------------------------------------------------------------ requests and leases

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def add(self, sequence: Sequence, now_s: float) -> None:
        """Queue a request.

        Raises:
            InvariantError: A request of that id has not ended.
        """
        if sequence.request_id in self._live:
            raise InvariantError(
                f"simulated engine: request {sequence.request_id} was added while it runs; "
                "whoever names legs must not repeat a name"
            )
        if sequence.pending_load_failure:
            self.handoffs.refuse()
        sequence.events = [wire.event(wire.EVENT_QUEUED, now_s)]
        self._live[sequence.request_id] = sequence
        if not self.tier.ask(sequence):
            self._queue(sequence)

    def abort(self, request_ids: list[str]) -> None:
        """End requests without an output. Unknown ids are ignored, as in vLLM."""
        for request_id in request_ids:
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._leave(sequence)
                self._end(sequence)

    def clear_prefix_cache(self) -> bool:
        """Forget cached prefixes; False when blocks are in use and nothing was done."""
        return self._kv.clear_cache()

    # ---------------------------------------------------------------------------- one step

    def plan(self, now_s: float) -> bool:
        """Decide what the next step computes and allocate its blocks; False for nothing."""
        self._pull_s = 0.0
        self._is_short_of_blocks = False
        self.handoffs.expire(now_s)
        self._loaded.extend(self.handoffs.take_loaded(now_s))
        for sequence in self.tier.take_answered(now_s):
            self._queue(sequence)
        self._loaded.extend(self.tier.take_loaded(now_s))
        for sequence in self._needs_block:
            if sequence.blocks:
                self._grow(sequence, 1, now_s)
        self._needs_block.clear()
        budget = self._limits.max_num_batched_tokens - len(self._decoding)
        for sequence in list(self._prefilling):
            if sequence.blocks:
                budget -= self._plan_chunk(sequence, budget, now_s)
        if not self._is_short_of_blocks and (self._waiting or self._loaded):
            self._admit(budget, now_s)
        return bool(self._decoding or self._prefilling)

    def step_work(self) -> StepWork:
        """Return what the planned step computes."""
        return work_of(self._prefilling, self._decoding)

    def chunks(self) -> list[Member]:
        """Return which pieces of prompts the planned step computes."""
        return chunks_of(self._prefilling)

    @property
    def pull_s(self) -> float:
        """Return how much the planned step is longer for pulling handoffs inside it."""
        return self._pull_s

    def finish_step(self, now_s: float) -> list[wire.Row]:
        """End the planned step and return its outputs, valid until the next call."""
        decoding = self._decoding
        if self._rows_are_stale:
            self._rows = [sequence.row for sequence in decoding]
            self._rows_are_stale = False
        rows = self._rows
        some_ended = False
        for sequence in decoding:
            emitted = sequence.emitted
            sequence.row_tokens[0] = sequence.tokens[emitted]
            sequence.emitted = emitted = emitted + 1
            if emitted == sequence.due and self._attend(sequence):
                some_ended = True
        if some_ended:
            self._decoding = [sequence for sequence in decoding if sequence.is_live]
            self._rows_are_stale = True
        if self._prefilling:
            return rows + self._finish_chunks(now_s)
        return rows

    def take_kv_events(self) -> list[CacheEvent]:
        """Return what happened to the prefix cache since the last call."""
        events = self._kv.events
        if events:
            self._kv.events = []
        return events

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that requests and leases hold."""
        return self._kv.usage

    def take_stats(self) -> dict[str, Any]:
        """Return vLLM's SchedulerStats, and begin to count look-ups anew."""
        looked_up, self._prefix_stats = self._prefix_stats, wire.PrefixStats()
        running = len(self._decoding) + len(self._prefilling)
        loading = len(self.handoffs.loading + self.tier.loading)
        return wire.scheduler_stats(
            running=running,
            waiting=len(self._live) - running - loading,
            loading=loading,
            kv_usage=self._kv.usage,
            looked_up=looked_up,
        )

    def check(self) -> None:
        """Raise InvariantError unless blocks, leases and requests add up."""
        self._kv.check()
        self.handoffs.check()
        running = [*self._decoding, *self._prefilling]
        running += [sequence for sequence in self._loaded if sequence.is_live]
        loading = self.handoffs.loading + self.tier.loading
        waiting = [sequence for _, _, sequence in self._waiting if sequence.is_live]
        waiting += self.tier.asking
        if len({*running, *loading, *waiting}) != len(self._live):
            raise InvariantError(
                f"simulated engine: {len(self._live)} requests, but {len(running)} run, "
                f"{len(loading)} load and {len(waiting)} wait"
            )
        if not self._live and not self.handoffs.num_leases and self._kv.usage > 0:
            raise InvariantError(f"simulated engine: idle with KV usage {self._kv.usage:.3f}")

    # ---------------------------------------------------------------------------- planning

    def _plan_chunk(self, sequence: Sequence, budget: int, now_s: float) -> int:
        """Give a running prefill its share of the budget; return what it took."""
        chunk = max(0, min(budget, sequence.num_tokens - sequence.computed))
        missing = self._limits.num_blocks_for(sequence.computed + chunk) - len(sequence.blocks)
        if missing > 0 and not self._grow(sequence, missing, now_s):
            return 0
        sequence.chunk = chunk
        return chunk

    def _admit(self, budget: int, now_s: float) -> None:
        running = len(self._decoding) + len(self._prefilling)
        while budget > 0 and running < self._limits.max_num_seqs:
            if self._loaded:
                sequence = self._loaded.popleft()
                if not sequence.is_live:
                    continue
                sequence.chunk = min(budget, sequence.num_tokens - sequence.computed)
            else:
                while self._waiting and not self._waiting[0][2].is_live:
                    heapq.heappop(self._waiting)
                if not self._waiting or not self._begin(self._waiting[0][2], budget, now_s):
                    return
                sequence = heapq.heappop(self._waiting)[2]
                pulls = sequence.handoff is not None and self._limits.async_load
                if pulls or sequence.is_loading:
                    continue
            sequence.handoff, sequence.is_loading = None, False
            sequence.events.append(wire.event(wire.EVENT_SCHEDULED, now_s))
            self._prefilling.append(sequence)
            budget -= sequence.chunk
            running += 1

    def _begin(self, sequence: Sequence, budget: int, now_s: float) -> bool:
        """Find cached blocks and allocate the others; False when there are too few."""
        block_size = self._limits.block_size
        num_tokens = sequence.num_tokens
        cached = []
        if sequence.reads_prefix_cache:
            num_full = (num_tokens - 1) // block_size
            sequence.hash_up_to(num_full, block_size)
            cached = self._kv.match(sequence.hashes[:num_full])
        local = len(cached) * block_size
        handed = sequence.handoff.num_tokens if sequence.handoff else 0
        onboarded = 0 if handed else self.tier.found(sequence, len(cached))
        held = max(local + onboarded * block_size, handed)
        # The last known token is always computed here: its output is the next token.
        computed = min(held, num_tokens - 1)
        chunk = min(budget, num_tokens - computed)
        num_blocks = self._limits.num_blocks_for(max(held, computed + chunk))
        fresh = self._kv.allocate(num_blocks - len(cached))
        if fresh is None:
            self._kv.release(cached)
            return False
        sequence.blocks = cached + fresh
        sequence.num_stored = len(cached)
        sequence.computed = computed
        sequence.chunk = chunk
        if handed > local:
            missing = self._limits.num_blocks_for(handed) - len(cached)
            self._pull_s += self.handoffs.pull(sequence, missing, now_s)
        else:
            sequence.handoff = None
            self.tier.load(sequence, len(cached), onboarded, now_s)
        if sequence.num_preemptions == 0 and not sequence.is_resumed:
            self._count_prefill(sequence, local, held - local)
        return True

    def _count_prefill(self, sequence: Sequence, local: int, external: int) -> None:
        if sequence.reads_prefix_cache:
            self._prefix_stats.requests += 1
            self._prefix_stats.queries += len(sequence.prompt)
            self._prefix_stats.hits += local
        sequence.count_prefill(self._limits.block_size, local, external)

    def _grow(self, sequence: Sequence, count: int, now_s: float) -> bool:
        """Give a running request more blocks; False when it had to make room itself."""
        while (blocks := self._kv.allocate(count)) is None:
            victim = max(
                [*self._decoding, *self._prefilling],
                key=lambda candidate: (candidate.priority, candidate.order),
            )
            self._preempt(victim, now_s)
            if victim is sequence:
                return False
        sequence.blocks += blocks
        return True

    def _preempt(self, sequence: Sequence, now_s: float) -> None:
        self._is_short_of_blocks = True
        self._leave(sequence)
        self._kv.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.chunk = sequence.num_stored = 0
        sequence.num_preemptions += 1
        sequence.events.append(wire.event(wire.EVENT_PREEMPTED, now_s))
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (sequence.priority, sequence.order, sequence))

    # --------------------------------------------------------------------------- finishing

    def _finish_chunks(self, now_s: float) -> list[wire.Row]:
        """Account for the computed chunks; return the rows of prefills that are complete."""
        rows = []
        still = []
        for sequence in self._prefilling:
            sequence.computed += sequence.chunk
            sequence.chunk = 0
            self._store(sequence)
            if sequence.computed < sequence.num_tokens:
                still.append(sequence)
                continue
            rows.append(self._first_row(sequence, now_s))
            if sequence.is_live:
                self._decoding.append(sequence)
                self._changes.enter(sequence)
                self._rows_are_stale = True
        self._prefilling = still
        return rows

    def _first_row(self, sequence: Sequence, now_s: float) -> wire.Row:
        """Return the output that follows a prefill: one token, and how it came about."""
        if sequence.emitted == len(sequence.tokens):
            sequence.extend()
        row = wire.new_row(sequence.request_id, sequence.tokens[sequence.emitted])
        sequence.emitted += 1
        wire.put(row, wire.PREFILL_STATS, sequence.prefill_stats)
        wire.put(row, wire.EVENTS, sequence.events)
        sequence.prefill_stats, sequence.events = None, []
        sequence.add_logprobs(row)
        if sequence.emitted == 1:
            sequence.add_prompt_logprobs(row)
        if sequence.emitted >= sequence.limit:
            if sequence.is_prefill_leg and sequence.emitted == 1:
                wire.put(row, wire.KV_TRANSFER_PARAMS, self.handoffs.offer(sequence, now_s))
            self._finish(sequence, row)
        else:
            self._keep_decoding(sequence)
        return row

    def _attend(self, sequence: Sequence) -> bool:
        """Do what a decoding request needs only now and then; True when it has ended."""
        sequence.add_logprobs(sequence.row)
        if sequence.emitted >= sequence.limit:
            self._finish(sequence, sequence.row)
            self._changes.leave(sequence)
            return True
        self._keep_decoding(sequence)
        return False

    def _keep_decoding(self, sequence: Sequence) -> None:
        """Prepare the next token, and say at how many of them ``_attend`` is needed next."""
        if sequence.emitted == len(sequence.tokens):
            sequence.extend()
        block_size = self._limits.block_size
        capacity = len(sequence.blocks) * block_size
        if sequence.num_tokens > capacity:
            sequence.computed = capacity
            self._store(sequence)
            self._needs_block.append(sequence)
            capacity += block_size
        full_at = capacity + 1 - len(sequence.prompt)
        due = min(sequence.limit, len(sequence.tokens), full_at)
        sequence.due = sequence.emitted + 1 if sequence.wants_logprobs else due

    def _store(self, sequence: Sequence) -> None:
        """Enter the blocks that became full into the prefix cache."""
        block_size = self._limits.block_size
        full = sequence.computed // block_size
        first = sequence.num_stored
        if full <= first or not self._limits.prefix_caching:
            return
        sequence.hash_up_to(full, block_size)
        stored = Stored(
            hashes=sequence.hashes[first:full],
            parent=sequence.hashes[first - 1] if first else None,
            tokens=sequence.known_tokens(first * block_size, full * block_size),
            salt=sequence.salt,
        )
        self._kv.store(stored, sequence.blocks[first:full])
        sequence.num_stored = full
        self.tier.store(sequence, first, full)

    def _finish(self, sequence: Sequence, row: wire.Row) -> None:
        """Write a request's end into its last row."""
        sequence.add_end(row)
        self._end(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a request out of the step."""
        if sequence in self._decoding:
            self._decoding.remove(sequence)
            self._changes.leave(sequence)
            self._rows_are_stale = True
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.is_live = False
        self.tier.forget(sequence)
        del self._live[sequence.request_id]
        self._kv.release(sequence.blocks)
        sequence.blocks = []
