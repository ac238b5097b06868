"""Where a request should run: what each choice costs, in tokens to compute before it is done.

One process places every leg and books it at once, so the books are exact and the cheapest
choice is simply taken; sampling and randomness, which guard against stale views, have no use.

The cost of a whole leg is what is computed before its last token::

    queued prefill tokens + uncached prompt tokens + decode share * sequences it joins

The first two are its wait and its prefill, less what the prefix cache saves. The third is what
the others cost it while it decodes: each of them makes each of its steps longer, so that a cached
prefix is worth its worker only as long as that one's larger batch costs less than the prefix
saves. Else all who share a prefix would go to the one worker that has it; so the next worker
computes or pulls it once, and has it too. A sum of prefill left and decode load is what
Dynamo's KV router takes the least of (``prefill_blocks - overlap + decode_blocks``); Preble
(Srivatsa et al., ICLR 2025) weighs its load and recomputation likewise, over GPU time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.ids import Generation
from nodeserve.router.admission import (
    OUTPUT_LOOKAHEAD_TOKENS,
    blocks_for,
    has_room,
    tokens_for,
)
from nodeserve.router.messages import LegKind, RequestArrived
from nodeserve.router.worker_view import WorkerView
from nodeserve.wire.kinds import Role

HANDOFF_TOKENS: Final = 256
"""What a handoff costs. Tuned ones are published at 20 to 30 ms on one node, in which one H100
prefills about so many tokens of a 70B model. A guess until measured on the operator's node."""

STREAM_TOKENS: Final = 2
"""What one sequence adds to each decode step, in prompt tokens that are prefilled in the same time.
By the step times of ``perf_model`` on H100, with contexts of 3,000 tokens: 1.6 to 3.1 for Llama-70B
FP8 (on four GPUs 36 us of weights and compute and 79 us of KV, against 50 us for a prompt token),
4 to 8 for gpt-oss-120b. The low end, for who leaves a prefix too early computes it once more."""

Cached = Mapping[Generation, int]
"""Leading blocks of one prompt in each worker's prefix cache; absent means none."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that take new legs, by role: those that drain are not among them.

    ``fits_all_tokens`` is the longest prompt that fits into the smallest of them.
    """

    prefill: tuple[WorkerView, ...] = ()
    decode: tuple[WorkerView, ...] = ()
    aggregated: tuple[WorkerView, ...] = ()
    fits_all_tokens: int = 0

    @classmethod
    def of(cls, views: Iterable[WorkerView]) -> "Fleet":
        """Sort workers by role, oldest first."""
        usable = sorted((v for v in views if not v.draining), key=lambda v: v.generation)
        return cls(
            prefill=tuple(v for v in usable if v.role is Role.PREFILL),
            decode=tuple(v for v in usable if v.role is Role.DECODE),
            aggregated=tuple(v for v in usable if v.role is Role.AGGREGATED),
            fits_all_tokens=min((v.capacity_tokens for v in usable), default=0),
        )

    def that_hold(self, prompt_tokens: int) -> "Fleet":
        """Return the workers whose whole KV holds so long a prompt: no other can ever run it."""
        if prompt_tokens <= self.fits_all_tokens:
            return self
        return Fleet.of(view for view in self.workers() if view.capacity_tokens >= prompt_tokens)

    def without_suspects(self) -> "Fleet":
        """Return the workers that do not run a request which may be about to kill them."""
        return Fleet.of(view for view in self.workers() if not view.suspects)

    def workers(self) -> tuple[WorkerView, ...]:
        """Return all of them."""
        return (*self.prefill, *self.decode, *self.aggregated)

    def decoders_beside(self, owner: Generation | None) -> tuple[WorkerView, ...]:
        """Return who may decode what ``owner`` has prefilled.

        Decode workers; without any aggregated ones; without those prefill workers: every
        engine can do everything. Never the owner itself.
        """
        for group in (self.decode, self.aggregated, self.prefill):
            others = tuple(view for view in group if view.generation != owner)
            if others:
                return others
        return ()


class Placement(NamedTuple):
    """Where a leg goes. ``decoder`` gets a slot kept for the request; None keeps none."""

    kind: LegKind
    worker: WorkerView
    decoder: WorkerView | None = None


class Choice(NamedTuple):
    """A worker, and what the request's first output would cost there."""

    cost: int
    worker: WorkerView


def uncached_tokens(request: RequestArrived, view: WorkerView, cached: Cached) -> int:
    """Return the prompt tokens that a worker must compute: at least 1, for the first output."""
    cached_blocks = cached.get(view.generation, 0)
    return max(request.prompt_tokens - cached_blocks * view.block_size, 1)


def decode_share(request: RequestArrived) -> int:
    """Return what each sequence that a whole or a decode leg joins costs it, in tokens.

    It has one step for its prompt and one for each output token. Its output is guessed to be no
    longer than the share of it that gets room, for clients ask for far more than they use.
    """
    return STREAM_TOKENS * (min(request.max_tokens, OUTPUT_LOOKAHEAD_TOKENS) + 1)


def choose_prefill(
    request: RequestArrived, views: Iterable[WorkerView], cached: Cached
) -> Choice | None:
    """Choose who prefills: queued prefill tokens plus what is uncached there.

    None when no worker has room.
    """
    return _cheapest(request, views, cached, LegKind.PREFILL, 0)


def choose_whole(
    request: RequestArrived, views: Iterable[WorkerView], cached: Cached
) -> Choice | None:
    """Choose who does all of a request: as for a prefill, plus the other sequences' share.

    None when no worker has room.
    """
    return _cheapest(request, views, cached, LegKind.WHOLE, decode_share(request))


def _cheapest(
    request: RequestArrived,
    views: Iterable[WorkerView],
    cached: Cached,
    kind: LegKind,
    share: int,
) -> Choice | None:
    """Take the lowest cost; among equals the fewest sequences, then the first: the oldest."""
    best: WorkerView | None = None
    best_cost = best_seqs = 0
    tokens = tokens_for(kind, request)
    prompt_tokens = request.prompt_tokens
    for view in views:
        num_seqs = len(view.legs) + len(view.slots)
        cost = view.queued_prefill_tokens + share * num_seqs
        cached_blocks = cached.get(view.generation, 0)
        cost += max(prompt_tokens - cached_blocks * view.block_size, 1)
        # Room is asked for last: most workers drop out by cost.
        if best is not None and (cost > best_cost or (cost == best_cost and num_seqs >= best_seqs)):
            continue
        if has_room(view, kind, blocks_for(tokens, view, cached_blocks)):
            best, best_cost, best_seqs = view, cost, num_seqs
    return None if best is None else Choice(best_cost, best)


def choose_decode(
    request: RequestArrived, views: Iterable[WorkerView], cached: Cached
) -> WorkerView | None:
    """Choose who decodes: the most free blocks for each sequence once this one is there.

    Free is what neither the router's account nor the engine's last report has in use: the
    first knows what is under way, the second outputs that grew past the look-ahead. Blocks
    that are cached there need not be pulled and count as free. None when nobody has room.
    """
    best: WorkerView | None = None
    best_free = 0.0
    tokens = tokens_for(LegKind.DECODE, request)
    for view in views:
        blocks = blocks_for(tokens, view, cached.get(view.generation, 0))
        used = max(view.reserved_blocks, view.kv_usage * view.num_blocks)
        num_seqs = len(view.legs) + len(view.slots)
        free = (view.num_blocks - used - blocks) / (num_seqs + 1)
        if (best is None or free > best_free) and has_room(view, LegKind.DECODE, blocks):
            best, best_free = view, free
    return best


def place(
    request: RequestArrived,
    fleet: Fleet,
    cached: Cached,
    *,
    local_prefill_tokens: int,
    may_reserve: bool,
    may_prefill_ahead: bool,
) -> Placement | None:
    """Decide how and where a request starts, or None: it waits.

    A request runs whole where it must, where no pair of a prefill and a decode worker exists,
    and where every decode worker would have to compute no more than ``local_prefill_tokens`` of
    it. Where only some of these would, since they have the rest in their prefix cache, they
    compete with the pair by cost, as the aggregated workers do.

    Args:
        request: What to place.
        fleet: Who takes new legs.
        cached: What of this prompt they have already.
        local_prefill_tokens: From the config; 0 means that every prompt is worth the hop.
        may_reserve: Whether room for decoding is free to take; False while others, who were
            let in before, wait for it.
        may_prefill_ahead: Whether a prefill may start before a decode worker has room.
    """
    if not fleet.decode:
        if not may_reserve:
            return None
        whole = choose_whole(request, fleet.aggregated, cached)
        return _whole(whole or choose_whole(request, fleet.prefill, cached))
    takers = fleet.decode if may_reserve else ()
    if request.whole or not fleet.prefill:
        return _whole(choose_whole(request, (*takers, *fleet.aggregated), cached))
    short = _short_for(request, fleet.decode, cached, local_prefill_tokens)
    local = short if may_reserve else ()
    whole = choose_whole(request, (*local, *fleet.aggregated), cached)
    if whole is not None and len(local) == len(fleet.decode):
        return _whole(whole)
    prefill = choose_prefill(request, fleet.prefill, cached)
    if prefill is None:
        return _whole(whole)
    decoder = choose_decode(request, takers, cached)
    if decoder is None and not (may_prefill_ahead and not short):
        return _whole(whole)
    if whole is not None:
        hop = HANDOFF_TOKENS + (decode_share(request) * decoder.num_seqs if decoder else 0)
        if decoder is None or whole.cost <= prefill.cost + hop:
            return _whole(whole)
    return Placement(LegKind.PREFILL, prefill.worker, decoder)


def _whole(choice: Choice | None) -> Placement | None:
    return None if choice is None else Placement(LegKind.WHOLE, choice.worker)


def _short_for(
    request: RequestArrived, views: tuple[WorkerView, ...], cached: Cached, limit: int
) -> tuple[WorkerView, ...]:
    """Return the workers that would compute at most ``limit`` tokens of a prompt."""
    if not limit or (not cached and request.prompt_tokens > limit):
        return ()
    return tuple(view for view in views if uncached_tokens(request, view, cached) <= limit)
