"""Legs that leave a draining worker while they run.

A leg moves when another worker has room for it, and runs on where it is until then, so that its
client waits for one prefill and not in a line. How fast a worker empties is up to the others:
each takes what it prefills in about one engine step, and the next when that has answered.
"""

from typing import Final

from nodeserve.router.admission import MAX_SKIPPED
from nodeserve.router.books import Books
from nodeserve.router.cost import choose_decode, choose_whole, uncached_tokens
from nodeserve.router.messages import Command
from nodeserve.router.request_flow import MovePlaced, Phase, RequestFlow
from nodeserve.router.worker_view import WorkerView

MOVED_TOKENS: Final = 1024
"""How much a worker prefills at a time of what moves to it. All streams there wait for as long
as a step with so many tokens takes: 0.1 s where one H100 prefills a 70B model. A request that is
longer moves where nothing else is prefilled."""

FEW_TOKENS: Final = 16
"""An answer with no more tokens left than this ends sooner than its prompt is computed again."""


def move_legs(books: Books) -> list[Command]:
    """Move what runs on draining workers to where there is room, oldest leg first."""
    commands: list[Command] = []
    for view in [view for view in books.views.values() if view.draining]:
        num_passed = 0
        for flow in [books.legs[leg_id] for leg_id in view.legs]:
            if not is_worth_moving(flow):
                continue
            moved = _try_move(books, flow)
            commands += moved
            num_passed += not moved
            if num_passed > MAX_SKIPPED:
                break
    return commands


def is_worth_moving(flow: RequestFlow) -> bool:
    """Tell whether a request's leg should go on elsewhere if its worker drains.

    A prefill leg hands over anyway. What cannot be restored ends where it runs, and what is
    almost over too.
    """
    if flow.phase is not Phase.DECODE or not flow.request.restorable:
        return False
    return not flow.has_output or flow.tokens_left > FEW_TOKENS


def _try_move(books: Books, flow: RequestFlow) -> list[Command]:
    request = flow.resumed()
    cached = books.cached(request)
    fleet = books.fleet.that_hold(request.prompt_tokens)
    taker: WorkerView | None
    if flow.lease_id is not None:
        # Nothing was answered yet: what was prefilled can be pulled by another worker as well.
        taker = choose_decode(request, fleet.decoders_beside(flow.lease_owner), cached)
    else:
        able = (*fleet.decode, *fleet.aggregated) or fleet.prefill
        calm = [
            view
            for view in able
            if not view.queued_prefill_tokens
            or view.queued_prefill_tokens + uncached_tokens(request, view, cached) <= MOVED_TOKENS
        ]
        choice = choose_whole(request, calm, cached)
        taker = None if choice is None else choice.worker
    if taker is None:
        return []
    return books.move_leg(flow, MovePlaced(taker.generation), cached)
