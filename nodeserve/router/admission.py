"""Who may start now: room by KV capacity, and how long who waits may be passed.

A leg is placed only where its blocks fit beside what is already promised there, because an
engine that runs out of KV preempts and computes again. Blocks that the worker's prefix cache
holds are not counted a second time. Where that guess is too kind, the engine preempts and
says so in its load report, and gets nothing new until its own queue is empty again.
"""

from typing import Final

from nodeserve.router.messages import LegKind, RequestArrived
from nodeserve.router.worker_view import WorkerView

OUTPUT_LOOKAHEAD_TOKENS: Final = 256
"""How much of a request's output gets room in advance. Clients ask for far more than they use:
reserving ``max_tokens`` would leave most of the KV cache empty."""

PREFILLS_AHEAD: Final = 4
"""Prompts per decode worker that may be prefilled before a decode slot is free. It hides their
prefill behind the wait; more would only pin KV of the prefill workers under leases that age."""

MAX_SKIPPED: Final = 4
"""How many waiting requests that do not fit are looked past, at most, per walk along a line."""

MAX_OVERTAKEN: Final = 32
"""How often one request is passed by later ones. After that everybody behind it waits."""


def tokens_for(kind: LegKind, request: RequestArrived) -> int:
    """Return for how many tokens a leg needs blocks.

    A prefill leg needs its prompt. The others need a bounded share of their output as well.
    """
    if kind is LegKind.PREFILL:
        return request.prompt_tokens
    return request.prompt_tokens + min(request.max_tokens, OUTPUT_LOOKAHEAD_TOKENS)


def blocks_for(tokens: int, view: WorkerView, cached_blocks: int) -> int:
    """Return how many blocks of a worker so many tokens take, at least 1."""
    return max(-(-tokens // view.block_size) - cached_blocks, 1)


def has_room(view: WorkerView, kind: LegKind, blocks: int) -> bool:
    """Tell whether a leg of so many blocks may start on a worker.

    Whatever its size, a request may run where nothing else does. For a decode leg leases do not
    count as something else: two workers may hold leases that wait for each other's room.
    """
    num_seqs = len(view.legs) + len(view.slots)
    if num_seqs:
        if num_seqs >= view.max_num_seqs:
            return False
        if kind is not LegKind.PREFILL and view.is_pressed:
            return False
    elif kind is LegKind.DECODE or not view.leases:
        return True
    return view.reserved_blocks + blocks <= view.num_blocks
