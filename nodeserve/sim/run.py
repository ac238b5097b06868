"""Run seeds, and cut the story of one that failed as short as it still shows the failure."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from nodeserve.sim.faults import Plan, gateway_name
from nodeserve.sim.node import SimNode
from nodeserve.sim.story import RuleBrokenError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """A plan that fails.

    ``rule`` says in a few words what did not hold, ``detail`` who and where. ``story`` has the
    events in order; it is empty unless it was asked for.
    """

    plan: Plan
    rule: str
    detail: str
    story: tuple[str, ...] = ()


def run(plan: Plan, *, is_told: bool = False) -> Failure | None:
    """Run one plan; None when all held."""
    node = SimNode(plan, is_told=is_told)
    try:
        node.run()
    except RuleBrokenError as error:
        return Failure(plan, error.rule, str(error), tuple(node.story.lines))
    except Exception as error:  # noqa: BLE001  whatever a core raises is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        rule = f"{type(error).__name__} in {where.name}"
        detail = "".join(traceback.format_exception(error)[-12:])
        return Failure(plan, rule, detail, tuple(node.story.lines))
    return None


def shortest(failure: Failure) -> Failure:
    """Leave out faults and requests while the same thing still fails, and tell the story."""

    def still_fails(plan: Plan) -> bool:
        again = run(plan)
        return again is not None and again.rule == failure.rule

    plan = failure.plan
    before = None
    while plan != before:
        before = plan
        plan = _without(plan, plan.faults, lambda p, left: replace(p, faults=left), still_fails)
        plan = _without(plan, plan.requests, lambda p, left: replace(p, requests=left), still_fails)
    told = run(plan, is_told=True)
    return failure if told is None else told


def _without(
    plan: Plan,
    parts: tuple[T, ...],
    rebuilt: Callable[[Plan, tuple[T, ...]], Plan],
    still_fails: Callable[[Plan], bool],
) -> Plan:
    """Leave out halves, then quarters, down to single parts, as long as it still fails."""
    size = max(1, len(parts) // 2)
    while parts:
        start = 0
        while start < len(parts):
            left = parts[:start] + parts[start + size :]
            candidate = rebuilt(plan, left)
            if still_fails(candidate):
                plan, parts = candidate, left
            else:
                start += size
        if size == 1:
            break
        size = max(1, size // 2)
    return plan


def describe(failure: Failure) -> Sequence[str]:
    """Return a failure for people: what it takes, what happened and what did not hold."""
    plan = failure.plan
    workers = ", ".join(
        f"{w.name} ({w.num_blocks} blocks, {w.max_num_seqs} sequences)" for w in plan.workers
    )
    return [
        f"seed {plan.seed} fails: {failure.rule}",
        f"node: {workers}",
        f"  leases: {plan.lease_slots} slots of {plan.lease_ttl_s:g} s",
        f"  queue: {plan.max_queued_requests}",
        *(f"  {gateway_name(place)}: {of}" for place, of in enumerate(plan.listeners)),
        *(f"  request: {request}" for request in plan.requests),
        *(f"  fault: {fault.at_s:.4f} s: {fault}" for fault in plan.faults),
        *failure.story,
        failure.detail,
    ]
