"""Where a request should run: what each choice costs, in tokens to compute before its first.

One process places every leg and books it at once, so the books are exact and the cheapest
choice is simply taken; sampling and randomness, which guard against stale views, have no use.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.ids import Generation
from nodeserve.router.admission import blocks_for, has_room, tokens_for
from nodeserve.router.messages import LegKind, RequestArrived
from nodeserve.router.worker_view import WorkerView
from nodeserve.wire.kinds import Role

HANDOFF_TOKENS: Final = 256
"""What a handoff costs. Tuned ones are published at 20 to 30 ms on one node, in which one H100
prefills about so many tokens of a 70B model. A guess until measured on the operator's node."""

ACTIVE_SEQ_TOKENS: Final = 2
"""What each sequence of a worker costs a prompt that joins it: one token in each engine step,
and a prompt is mostly done in two."""

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
    """Choose who does all of a request: as for a prefill, plus its other sequences' share.

    None when no worker has room.
    """
    return _cheapest(request, views, cached, LegKind.WHOLE, ACTIVE_SEQ_TOKENS)


def _cheapest(
    request: RequestArrived,
    views: Iterable[WorkerView],
    cached: Cached,
    kind: LegKind,
    seq_tokens: int,
) -> Choice | None:
    """Take the lowest cost; among equals the fewest sequences, then the first: the oldest."""
    best: WorkerView | None = None
    best_cost = best_seqs = 0
    tokens = tokens_for(kind, request)
    prompt_tokens = request.prompt_tokens
    for view in views:
        num_seqs = len(view.legs) + len(view.slots)
        cost = view.queued_prefill_tokens + seq_tokens * num_seqs
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
    and where a decode worker would have to compute no more than ``local_prefill_tokens`` of
    it. Otherwise the pair and the aggregated workers compete by cost.

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
    if short and may_reserve:
        whole = choose_whole(request, (*short, *fleet.aggregated), cached)
        if whole is not None:
            return _whole(whole)
    whole = choose_whole(request, fleet.aggregated, cached)
    prefill = choose_prefill(request, fleet.prefill, cached)
    if prefill is None:
        return _whole(whole)
    decoder = choose_decode(request, takers, cached)
    if decoder is None and not (may_prefill_ahead and not short):
        return _whole(whole)
    if whole is not None:
        hop = HANDOFF_TOKENS + (ACTIVE_SEQ_TOKENS * decoder.num_seqs if decoder else 0)
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
