"""Who has what: every live leg, lease and decode slot, and the worker it is booked on."""

from collections.abc import Iterable

from nodeserve.errors import InvariantError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.kv.prefix_index import PrefixIndex
from nodeserve.router.admission import blocks_for, tokens_for
from nodeserve.router.cost import Cached, Fleet, uncached_tokens
from nodeserve.router.messages import (
    BlocksRemoved,
    BlocksStored,
    Command,
    LegKind,
    ReleaseLease,
    RequestArrived,
    WorkerAttached,
)
from nodeserve.router.request_flow import (
    DecodePlaced,
    HandoffGranted,
    MovePlaced,
    PrefillPlaced,
    RequestFlow,
    WholePlaced,
)
from nodeserve.router.worker_view import Lease, PlacedLeg, WorkerView


class Books:
    """The accounts of all attached workers, kept in step with the requests' flows."""

    def __init__(self) -> None:
        self.views: dict[Generation, WorkerView] = {}
        self.legs: dict[LegId, RequestFlow] = {}
        self.slots: dict[RequestId, WorkerView] = {}
        self.prefixes = PrefixIndex()
        self.fleet = Fleet()
        self.some_drain = False

    def attach(self, event: WorkerAttached) -> None:
        """Open a worker's account.

        Raises:
            InvariantError: Its generation has one already; nothing changed.
        """
        if event.generation in self.views:
            raise InvariantError(
                f"router: worker generation {event.generation} attached twice; report this bug"
            )
        self.views[event.generation] = WorkerView(event)
        self.prefixes.add_worker(event.generation, event.num_blocks)
        self.sort_fleet()

    def close(self, generation: Generation) -> WorkerView | None:
        """Close a worker's account and return it; None when there is none."""
        view = self.views.pop(generation, None)
        if view is not None:
            self.prefixes.forget(generation)
            self.sort_fleet()
        return view

    def sort_fleet(self) -> None:
        """Sort the workers again: one came, went, began to drain or changed its role."""
        self.fleet = Fleet.of(self.views.values())
        self.some_drain = any(view.draining for view in self.views.values())

    def why_too_large(self, request: RequestArrived) -> str | None:
        """Say why no worker that takes new legs could ever run a request; None where one could.

        Without any such worker nothing is known, so the request may wait.
        """
        if request.prompt_tokens <= self.fleet.fits_all_tokens:
            return None
        workers = self.fleet.workers()
        largest = max(workers, key=lambda view: view.capacity_tokens, default=None)
        if largest is None or request.prompt_tokens <= largest.capacity_tokens:
            return None
        if largest.capacity_tokens < largest.num_blocks * largest.block_size:
            return (
                f"its prompt of {request.prompt_tokens} tokens is too long for every worker:"
                f" max_model_len is {largest.max_model_len}; shorten the prompt"
            )
        return (
            f"its prompt of {request.prompt_tokens} tokens needs"
            f" {-(-request.prompt_tokens // largest.block_size)} KV blocks, the largest worker has"
            f" {largest.num_blocks} of {largest.block_size} tokens; shorten the prompt or give"
            " workers more KV memory"
        )

    def newly_drained(self) -> list[Generation]:
        """Return the draining workers that hold nothing any more, each once."""
        drained = []
        for view in self.views.values():
            if view.draining and not view.reported_drained and view.is_quiescent:
                view.reported_drained = True
                drained.append(view.generation)
        return drained

    def blocks_stored(self, event: BlocksStored) -> None:
        """Note what a worker's prefix cache has now."""
        self.prefixes.store(event.generation, event.block_hashes)

    def blocks_removed(self, event: BlocksRemoved) -> None:
        """Note what a worker's prefix cache no longer has."""
        if event.block_hashes is None:
            self.prefixes.clear(event.generation)
        else:
            self.prefixes.remove(event.generation, event.block_hashes)

    def cached(self, request: RequestArrived) -> Cached:
        """Return how many of a prompt's leading blocks each worker has in its prefix cache."""
        hashes = request.block_hashes
        return self.prefixes.longest_prefix(hashes) if hashes else {}

    def start_leg(
        self,
        flow: RequestFlow,
        event: PrefillPlaced | WholePlaced | DecodePlaced | MovePlaced,
        cached: Cached,
    ) -> list[Command]:
        """Start a leg of a request and book it on its worker."""
        commands = flow.handle(event)
        view = self.views[event.generation]
        leg_id, kind = flow.leg_id, flow.kind
        if leg_id is None or kind is None:
            raise InvariantError(f"router: {event} started no leg; report this bug")
        cached_blocks = cached.get(event.generation, 0)
        blocks = blocks_for(tokens_for(kind, flow.request), view, cached_blocks)
        tokens = 0 if kind is LegKind.DECODE else uncached_tokens(flow.request, view, cached)
        self.legs[leg_id] = flow
        view.place_leg(leg_id, PlacedLeg(kind, blocks, tokens))
        if flow.losses.is_last_chance:
            view.suspects.add(leg_id)
        return commands

    def move_leg(self, flow: RequestFlow, event: MovePlaced, cached: Cached) -> list[Command]:
        """End a request's leg on its worker and start the next on another one."""
        self.end_leg(flow)
        commands = self.start_leg(flow, event, cached)
        self.settle(commands)
        return commands

    def end_leg(self, flow: RequestFlow) -> int:
        """Take a request's leg, if it has one, off the books; return the blocks it had."""
        if flow.leg_id is None or flow.generation is None:
            return 0
        del self.legs[flow.leg_id]
        return self.views[flow.generation].end_leg(flow.leg_id).blocks

    def turn_into_lease(
        self, flow: RequestFlow, generation: Generation, lease_id: LeaseId
    ) -> list[Command]:
        """End a prefill leg whose blocks stay where they are, under a lease."""
        lease = Lease(flow.request.request_id, self.end_leg(flow))
        self.views[generation].grant_lease(lease_id, lease)
        return flow.handle(HandoffGranted(lease_id))

    def settle(self, commands: Iterable[Command]) -> None:
        """Take the leases that a flow has released off the books."""
        for command in commands:
            if isinstance(command, ReleaseLease):
                self.views[command.generation].release_lease(command.lease_id)

    def keep_slot(self, request: RequestArrived, decoder: WorkerView, cached: Cached) -> None:
        """Keep room on a worker for a request's decode leg."""
        cached_blocks = cached.get(decoder.generation, 0)
        blocks = blocks_for(tokens_for(LegKind.DECODE, request), decoder, cached_blocks)
        decoder.reserve_slot(request.request_id, blocks)
        self.slots[request.request_id] = decoder

    def give_slot_back(self, request_id: RequestId) -> None:
        """Give back the room kept for a request, if there is any."""
        decoder = self.slots.pop(request_id, None)
        if decoder is not None:
            decoder.release_slot(request_id)

    def give_all_slots_back(self, view: WorkerView) -> list[RequestId]:
        """Give back all the room kept on a worker and return for whom it was."""
        request_ids = list(view.slots)
        for request_id in request_ids:
            self.give_slot_back(request_id)
        return request_ids

    def check(self) -> None:
        """Check that flows and accounts tell the same story.

        Raises:
            InvariantError: They do not: something would leak or be used after its end.
        """
        self.prefixes.check()
        booked_legs: dict[LegId, Generation] = {}
        booked_slots: dict[RequestId, Generation] = {}
        for generation, view in self.views.items():
            view.check()
            booked_legs.update(dict.fromkeys(view.legs, generation))
            booked_slots.update(dict.fromkeys(view.slots, generation))
            if view.slots and view.draining:
                raise InvariantError(
                    f"router: worker generation {generation} drains and still has slots kept for"
                    f" {len(view.slots)} requests; report this bug"
                )
        running = {leg_id: flow.generation for leg_id, flow in self.legs.items()}
        slots = {request_id: view.generation for request_id, view in self.slots.items()}
        if running != booked_legs or slots != booked_slots:
            raise InvariantError(
                f"router: {len(running)} legs run and {len(booked_legs)} are booked,"
                f" {len(slots)} slots are kept and {len(booked_slots)} are booked, not all alike;"
                " report this bug"
            )
