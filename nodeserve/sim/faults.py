"""What a simulated node is made of, what is asked of it and what goes wrong: all from a seed."""

import enum
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeserve.wire.kinds import Role

BLOCK_SIZE: Final = 4
MAX_MODEL_LEN: Final = 64
FAMILY_STRIDE: Final = 1000
"""Prompts of one family begin alike; those of two families share no token."""

ARRIVALS_FROM_S: Final = 0.4
ARRIVALS_UNTIL_S: Final = 2.4
FAULTS_UNTIL_S: Final = 3.4

DISPATCHER: Final = "dispatcher"
FORKSERVER: Final = "forkserver"
BLOCK_MANAGER: Final = "block-manager"

_ONE_IN: Final = 3
"""So many nodes have a block manager."""


class FaultKind(enum.Enum):
    """What can go wrong, or be asked for at a bad moment; the number is the fault's ``amount``."""

    KILL = "is killed"
    FAIL_NEXT_START = "will fail to start the next time"
    HANG = "stops for {:.3f} s without a sign"
    MUTE = "takes no message for {:.3f} s"
    SLOW = "takes {:.1f} times as long for each step"
    DEAF = "will need {:.3f} s to die of a signal"
    DELAY = "is heard only {:.3f} s later"
    REPEAT = "is sent, or says, its next messages twice"
    DROP = "loses its next messages, of those that may be lost"
    STUCK = "reads nothing for {:.3f} s"
    LEAP = "the clock leaps by {:.3f} s"
    DRAIN = "is drained by an operator"
    RESTART = "is restarted by an operator, after draining"
    RESTART_NOW = "is restarted by an operator, at once"
    ROLE = "gets another role"
    STOP_NODE = "the node is told to stop"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. ``target`` is a process by name; "" for the whole node."""

    at_s: float
    kind: FaultKind
    target: str
    amount: float = 0.0

    def __str__(self) -> str:
        if self.kind is FaultKind.ROLE:
            return f"{self.target} {self.kind.value}: {list(Role)[int(self.amount)]}"
        return f"{self.target} {self.kind.value.format(self.amount)}".strip()


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One worker of the node."""

    name: str
    role: Role
    num_blocks: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class PlannedListener:
    """What one listener's requests may take. None sets no limit."""

    priority: int = 0
    weight: float = 1.0
    max_running: int | None = None
    max_queued: int | None = None
    queue_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One client's request.

    ``strict`` requests ask for what no other worker could go on with. The client goes away at
    ``abort_at_s``, or when it has ``abort_after`` tokens.
    """

    number: int
    arrive_s: float
    listener: int
    family: int
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    strict: bool = False
    abort_at_s: float | None = None
    abort_after: int | None = None

    def prompt(self) -> list[int]:
        """Return the token ids."""
        first = 1 + FAMILY_STRIDE * self.family
        return list(range(first, first + self.prompt_tokens))


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. The same plan always gives the same run.

    ``has_tier`` is whether the node has a block manager. Its engines ask it nothing here.
    """

    seed: int
    workers: tuple[PlannedWorker, ...]
    listeners: tuple[PlannedListener, ...]
    local_prefill_tokens: int
    max_queued_requests: int
    lease_ttl_s: float
    lease_slots: int
    step_s: float
    requests: tuple[PlannedRequest, ...]
    faults: tuple[Fault, ...]
    has_tier: bool = False


def plan_of(seed: int) -> Plan:
    """Return the run that a seed stands for."""
    draw = random.Random(seed)  # noqa: S311  deterministic by purpose
    workers = _workers(draw)
    listeners = tuple(_listener(draw) for _ in range(draw.choice((1, 1, 2))))
    has_tier = seed % _ONE_IN == 1
    return Plan(
        seed=seed,
        workers=workers,
        listeners=listeners,
        local_prefill_tokens=draw.choice((0, 0, 8, 24)),
        max_queued_requests=draw.choice((1, 3, 1000, 1000)),
        lease_ttl_s=draw.choice((0.3, 20.0, 20.0)),
        lease_slots=draw.choice((1, 2, 16)),
        step_s=draw.choice((0.01, 0.02, 0.05)),
        requests=_requests(draw, len(listeners)),
        faults=_in_order(
            [
                *_faults(draw, workers, len(listeners)),
                *(_tier_faults(seed) if has_tier else ()),
            ]
        ),
        has_tier=has_tier,
    )


def gateway_name(listener: int) -> str:
    """Return the name of a listener's gateway."""
    return f"gateway-{listener}"


def _workers(draw: random.Random) -> tuple[PlannedWorker, ...]:
    roles = draw.choice(
        (
            (Role.PREFILL, Role.DECODE),
            (Role.PREFILL, Role.DECODE),
            (Role.PREFILL, Role.DECODE, Role.DECODE),
            (Role.PREFILL, Role.PREFILL, Role.DECODE),
            (Role.PREFILL, Role.DECODE, Role.AGGREGATED),
            (Role.AGGREGATED, Role.AGGREGATED),
            (Role.AGGREGATED,),
            (Role.DECODE, Role.DECODE),
        )
    )
    return tuple(
        PlannedWorker(f"{role}-{place}", role, draw.randint(16, 30), draw.choice((1, 2, 4, 8)))
        for place, role in enumerate(roles)
    )


def _listener(draw: random.Random) -> PlannedListener:
    return PlannedListener(
        priority=draw.choice((0, 0, 1)),
        weight=draw.choice((1.0, 1.0, 4.0)),
        max_running=draw.choice((None, None, 1, 3)),
        max_queued=draw.choice((None, None, 0, 2)),
        queue_timeout_s=draw.choice((600.0, 600.0, 0.5)),
    )


def _requests(draw: random.Random, num_listeners: int) -> tuple[PlannedRequest, ...]:
    requests = []
    for number in range(draw.randint(1, 12)):
        max_tokens = draw.choice((1, 2, 4, 8, 12, 20))
        arrive_s = round(draw.uniform(ARRIVALS_FROM_S, ARRIVALS_UNTIL_S), 4)
        leaves, stays_s = draw.random(), draw.choice((0.05, 0.1, 0.6))
        requests.append(
            PlannedRequest(
                number=number,
                arrive_s=arrive_s,
                listener=draw.randrange(num_listeners),
                family=draw.randrange(3),
                prompt_tokens=draw.choice((2, 5, 9, 16, 25, 40)),
                max_tokens=max_tokens,
                priority=draw.choice((0, 0, 1)),
                strict=draw.random() < 0.1,
                abort_at_s=arrive_s + draw.uniform(0.0, stays_s) if leaves < 0.2 else None,
                abort_after=draw.randint(1, max_tokens) if 0.2 <= leaves < 0.3 else None,
            )
        )
    return tuple(requests)


def _faults(
    draw: random.Random, workers: tuple[PlannedWorker, ...], num_listeners: int
) -> list[Fault]:
    worker_names = [worker.name for worker in workers]
    gateways = [gateway_name(place) for place in range(num_listeners)]
    faults = []
    for _ in range(draw.randint(0, 9)):
        kind = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        target = _target(draw, kind, worker_names, gateways)
        from_s = 0.0 if draw.random() < 0.05 else ARRIVALS_FROM_S
        at_s = round(draw.uniform(from_s, FAULTS_UNTIL_S), 4)
        faults.append(Fault(at_s, kind, target, _AMOUNTS.get(kind, _nothing)(draw)))
    return faults


def _tier_faults(seed: int) -> list[Fault]:
    """Return what goes wrong with the block manager, from a source of chance of its own."""
    draw = random.Random(-seed)  # noqa: S311  deterministic by purpose
    faults = []
    for _ in range(draw.randint(0, 4)):
        kind = draw.choice(_TIER_FAULTS)
        at_s = round(draw.uniform(ARRIVALS_FROM_S, FAULTS_UNTIL_S), 4)
        faults.append(Fault(at_s, kind, BLOCK_MANAGER, _AMOUNTS.get(kind, _nothing)(draw)))
    return faults


def _in_order(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _target(draw: random.Random, kind: FaultKind, workers: list[str], gateways: list[str]) -> str:
    match kind:
        case FaultKind.KILL:
            others = [DISPATCHER, FORKSERVER, draw.choice(gateways)]
            return draw.choice(workers if draw.random() < 0.7 else others)
        case FaultKind.RESTART:
            return draw.choice([*workers, draw.choice(gateways)])
        case FaultKind.RESTART_NOW:
            return draw.choice([*workers, DISPATCHER, draw.choice(gateways)])
        case FaultKind.DEAF | FaultKind.DELAY | FaultKind.REPEAT:
            return draw.choice([*workers, DISPATCHER, draw.choice(gateways)])
        case FaultKind.STUCK:
            return draw.choice(gateways)
        case FaultKind.LEAP | FaultKind.STOP_NODE:
            return ""
        case _:
            return draw.choice(workers)


def _nothing(_draw: random.Random) -> float:
    return 0.0


def _between(low: float, high: float) -> Callable[[random.Random], float]:
    return lambda draw: round(draw.uniform(low, high), 3)


_WEIGHTS: Final[Mapping[FaultKind, float]] = {
    FaultKind.KILL: 10,
    FaultKind.FAIL_NEXT_START: 1,
    FaultKind.HANG: 4,
    FaultKind.MUTE: 2,
    FaultKind.SLOW: 2,
    FaultKind.DEAF: 2,
    FaultKind.DELAY: 4,
    FaultKind.REPEAT: 3,
    FaultKind.DROP: 2,
    FaultKind.STUCK: 2,
    FaultKind.LEAP: 1,
    FaultKind.DRAIN: 2,
    FaultKind.RESTART: 2,
    FaultKind.RESTART_NOW: 2,
    FaultKind.ROLE: 4,
    FaultKind.STOP_NODE: 0.5,
}

_TIER_FAULTS: Final = (
    *(FaultKind.KILL, FaultKind.KILL, FaultKind.RESTART, FaultKind.RESTART_NOW),
    *(FaultKind.FAIL_NEXT_START, FaultKind.DEAF, FaultKind.DELAY, FaultKind.REPEAT),
)

_AMOUNTS: Final[Mapping[FaultKind, Callable[[random.Random], float]]] = {
    FaultKind.HANG: _between(0.01, 2.5),
    FaultKind.MUTE: _between(0.05, 0.5),
    FaultKind.SLOW: _between(2.0, 10.0),
    FaultKind.DEAF: _between(0.1, 3.0),
    FaultKind.DELAY: _between(0.01, 0.5),
    FaultKind.STUCK: _between(0.1, 3.0),
    FaultKind.LEAP: _between(0.1, 30.0),
    FaultKind.ROLE: lambda draw: float(draw.randrange(len(Role))),
}
