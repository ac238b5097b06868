"""Small plans, without chance where a test does not want it."""

from dataclasses import replace
from typing import Any

from nodeserve.sim.faults import Fault, FaultKind, Plan, PlannedListener, PlannedRequest
from nodeserve.sim.faults import PlannedWorker as Worker
from nodeserve.sim.node import SimNode
from nodeserve.wire.kinds import Role

PAIR = Plan(
    seed=1,
    workers=(Worker("prefill-0", Role.PREFILL, 20, 4), Worker("decode-1", Role.DECODE, 20, 4)),
    listeners=(PlannedListener(),),
    local_prefill_tokens=0,
    max_queued_requests=1000,
    lease_ttl_s=60.0,
    lease_slots=16,
    step_s=0.02,
    requests=(),
    faults=(),
)


def request(number: int = 0, **changes: Any) -> PlannedRequest:
    """Return a request of 16 + 8 tokens that arrives when the node serves."""
    sound = PlannedRequest(number, 0.5, 0, family=0, prompt_tokens=16, max_tokens=8)
    return replace(sound, **changes)


def fault(kind: FaultKind, target: str, amount: float = 0.0, at_s: float = 0.6) -> Fault:
    """Return a fault that strikes while the first request is answered."""
    return Fault(at_s, kind, target, amount)


def ran(*parts: PlannedRequest | Fault, **changes: Any) -> SimNode:
    """Return a node that has run these requests and faults to the end, and its story."""
    requests = tuple(part for part in parts if isinstance(part, PlannedRequest))
    faults = tuple(part for part in parts if isinstance(part, Fault))
    node = SimNode(replace(PAIR, requests=requests, faults=faults, **changes), is_told=True)
    node.run()
    return node


def told(node: SimNode, *words: str) -> bool:
    """Tell whether one line of a node's story has all these words."""
    return any(all(word in line for word in words) for line in node.story.lines)
