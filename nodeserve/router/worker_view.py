"""What the router knows of one worker: its size, and what was placed there."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from nodeserve.errors import InvariantError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import LegKind, LoadReported, WorkerAttached
from nodeserve.wire.kinds import Role

_NO_LIMIT: Final = 1 << 62

PRESSED_KV_USAGE: Final = 0.9
"""An engine this full whose own queue is not empty gains nothing from one more request."""


class PlacedLeg(NamedTuple):
    """One leg's share of its worker. ``prefill_tokens`` are those not yet computed."""

    kind: LegKind
    blocks: int
    prefill_tokens: int


class Lease(NamedTuple):
    """Blocks that stay on this worker until another has pulled them."""

    request_id: RequestId
    blocks: int


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker at one moment, for people and metrics.

    ``running``, ``waiting`` and ``kv_usage`` are the engine's last report; the rest is the
    router's own account. ``reserved_blocks`` covers legs, leases and decode slots.
    """

    generation: Generation
    role: Role
    draining: bool
    num_blocks: int
    running: int
    waiting: int
    kv_usage: float
    queued_prefill_tokens: int
    reserved_blocks: int
    prefill_legs: int
    decode_legs: int
    whole_legs: int
    leases: int
    decode_slots: int


class WorkerView:
    """One worker's account. Every placement and every end is booked at once.

    ``slots`` are decode slots kept for requests that another worker prefills. ``suspects`` are
    legs that have not answered, of requests on their last chance: one at a time is let in.
    """

    __slots__ = (
        "block_size",
        "draining",
        "generation",
        "kv_usage",
        "leases",
        "legs",
        "max_model_len",
        "max_num_seqs",
        "num_blocks",
        "queued_prefill_tokens",
        "reported_drained",
        "reserved_blocks",
        "role",
        "running",
        "slots",
        "suspects",
        "waiting",
    )

    def __init__(self, attached: WorkerAttached) -> None:
        self.generation = attached.generation
        self.role = attached.role
        self.num_blocks = attached.num_blocks
        self.block_size = attached.block_size
        self.max_num_seqs = attached.max_num_seqs
        limit = attached.max_model_len
        self.max_model_len = _NO_LIMIT if limit is None else limit
        self.draining = attached.draining
        self.reported_drained = False
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.queued_prefill_tokens = 0
        self.reserved_blocks = 0
        self.legs: dict[LegId, PlacedLeg] = {}
        self.leases: dict[LeaseId, Lease] = {}
        self.slots: dict[RequestId, int] = {}
        self.suspects: set[LegId] = set()

    @property
    def capacity_tokens(self) -> int:
        """The longest prompt that fits when nothing else is there, beside one output token."""
        return min(self.num_blocks * self.block_size, self.max_model_len - 1)

    @property
    def num_seqs(self) -> int:
        """Count the sequences that run, or will run in a slot kept for them."""
        return len(self.legs) + len(self.slots)

    @property
    def is_quiescent(self) -> bool:
        """Tell whether neither a leg nor a lease nor a slot is left."""
        return not (self.legs or self.leases or self.slots)

    @property
    def is_pressed(self) -> bool:
        """Tell whether the engine itself says that it has no room for what it already has."""
        return self.waiting > 0 and self.kv_usage >= PRESSED_KV_USAGE

    def report(self, event: LoadReported) -> None:
        """Take in the engine's own account of its queues."""
        self.running = event.running
        self.waiting = event.waiting
        self.kv_usage = event.kv_usage

    def place_leg(self, leg_id: LegId, leg: PlacedLeg) -> None:
        """Book a leg that is sent to this worker."""
        self.legs[leg_id] = leg
        self.reserved_blocks += leg.blocks
        self.queued_prefill_tokens += leg.prefill_tokens

    def finish_prefill(self, leg_id: LegId) -> None:
        """Book that a leg has computed its prompt."""
        leg = self.legs[leg_id]
        self.queued_prefill_tokens -= leg.prefill_tokens
        self.legs[leg_id] = leg._replace(prefill_tokens=0)
        self.suspects.discard(leg_id)

    def end_leg(self, leg_id: LegId) -> PlacedLeg:
        """Book that a leg is over and return what it had."""
        leg = self.legs.pop(leg_id)
        self.suspects.discard(leg_id)
        self.reserved_blocks -= leg.blocks
        self.queued_prefill_tokens -= leg.prefill_tokens
        return leg

    def grant_lease(self, lease_id: LeaseId, lease: Lease) -> None:
        """Book blocks that stay pinned after their leg."""
        self.leases[lease_id] = lease
        self.reserved_blocks += lease.blocks

    def release_lease(self, lease_id: LeaseId) -> None:
        """Book that nobody needs the leased blocks any more."""
        self.reserved_blocks -= self.leases.pop(lease_id).blocks

    def reserve_slot(self, request_id: RequestId, blocks: int) -> None:
        """Keep room for a decode leg that comes later."""
        self.slots[request_id] = blocks
        self.reserved_blocks += blocks

    def release_slot(self, request_id: RequestId) -> None:
        """Give back the room kept for a decode leg."""
        self.reserved_blocks -= self.slots.pop(request_id)

    def snapshot(self) -> WorkerSnapshot:
        """Return the account as it stands."""
        kinds = [leg.kind for leg in self.legs.values()]
        return WorkerSnapshot(
            generation=self.generation,
            role=self.role,
            draining=self.draining,
            num_blocks=self.num_blocks,
            running=self.running,
            waiting=self.waiting,
            kv_usage=self.kv_usage,
            queued_prefill_tokens=self.queued_prefill_tokens,
            reserved_blocks=self.reserved_blocks,
            prefill_legs=kinds.count(LegKind.PREFILL),
            decode_legs=kinds.count(LegKind.DECODE),
            whole_legs=kinds.count(LegKind.WHOLE),
            leases=len(self.leases),
            decode_slots=len(self.slots),
        )

    def check(self) -> None:
        """Check that the running sums are those of what is booked.

        Raises:
            InvariantError: They are not, or the worker reported drained and holds something.
        """
        blocks = sum(leg.blocks for leg in self.legs.values())
        blocks += sum(lease.blocks for lease in self.leases.values()) + sum(self.slots.values())
        tokens = sum(leg.prefill_tokens for leg in self.legs.values())
        if (blocks, tokens) != (self.reserved_blocks, self.queued_prefill_tokens):
            raise InvariantError(
                f"worker generation {self.generation}: books {self.reserved_blocks} blocks and"
                f" {self.queued_prefill_tokens} prefill tokens, its legs, leases and slots have"
                f" {blocks} and {tokens}; report this bug"
            )
        if not self.suspects <= self.legs.keys():
            raise InvariantError(
                f"worker generation {self.generation}: suspects legs that it has not, of"
                f" {self.suspects}; report this bug"
            )
        if self.reported_drained and not self.is_quiescent:
            raise InvariantError(
                f"worker generation {self.generation}: reported drained with {len(self.legs)}"
                f" legs, {len(self.leases)} leases and {len(self.slots)} slots; report this bug"
            )
