"""The simulation finds bugs: each is planted into a core that serves, and found in a few seeds."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nodeserve.dispatcher.bookings import Bookings
from nodeserve.dispatcher.desk import RequestDesk
from nodeserve.dispatcher.joins import Joins
from nodeserve.dispatcher.service import Dispatcher
from nodeserve.dispatcher.utilities import Utilities
from nodeserve.dispatcher.worker_link import WorkerTable
from nodeserve.engine.simulated.kv_blocks import KvBlocks
from nodeserve.lifecycle.slots import Slots
from nodeserve.router.fair_queue import FairQueue
from nodeserve.router.lines import Lines
from nodeserve.router.request_flow import RequestFlow
from nodeserve.router.worker_view import WorkerView
from nodeserve.sim.faults import plan_of
from nodeserve.sim.run import describe, run, shortest
from nodeserve.wire.engine_core import RequestCodec
from nodeserve.wire.engine_outputs import OutputCodec

Plant = Callable[[pytest.MonkeyPatch], None]


def lease_is_forgotten_at_abort(patch: pytest.MonkeyPatch) -> None:
    sound = RequestFlow._abort_leg

    def abort_leg(self):
        self.lease_id = self.lease_owner = None
        return sound(self)

    patch.setattr(RequestFlow, "_abort_leg", abort_leg)


def retired_generation_is_still_heard(patch: pytest.MonkeyPatch) -> None:
    sound = RequestDesk._leave
    retired = set()

    def retire(self, generation):
        retired.add((self, generation))
        return self.attached.get(generation)

    def leave(self, request):
        leg = request.leg
        sound(self, request)
        if leg is not None and (self.workers, leg.worker.generation) in retired:
            self.legs[leg.leg_id] = leg

    patch.setattr(RequestDesk, "_leave", leave)
    patch.setattr(WorkerTable, "retire", retire)


def queued_twice_after_a_loss(patch: pytest.MonkeyPatch) -> None:
    sound = Lines.start_over

    def start_over(self, flow):
        sound(self, flow)
        if flow.request.request_id in self.queue:
            self.line_up(flow)

    patch.setattr(Lines, "start_over", start_over)


def slots_of_a_lost_worker_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "move_slots", lambda self, view: None)


def drained_with_a_lease_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkerView, "is_quiescent", property(lambda self: not self.legs))


def generation_is_used_again(patch: pytest.MonkeyPatch) -> None:
    sound = Slots._next_generation

    def next_generation(self, slot):
        if slot.generation:
            slot.begin(slot.generation)
            return slot.generation
        return sound(self, slot)

    patch.setattr(Slots, "_next_generation", next_generation)


def queue_takes_one_more(patch: pytest.MonkeyPatch) -> None:
    sound = Lines._keep_bounds
    patch.setattr(Lines, "_keep_bounds", lambda self, flow, limit: sound(self, flow, limit + 1))


def resumed_answer_begins_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        RequestCodec, "resumed_leg", lambda self, add, leg_id, _sent: self.whole_leg(add, leg_id)
    )


def leased_blocks_are_not_pinned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KvBlocks, "pin", lambda self, blocks: None)


def release_names_the_next_lease(patch: pytest.MonkeyPatch) -> None:
    sound = Utilities.release
    patch.setattr(
        Utilities, "release", lambda self, worker, lease_id: sound(self, worker, lease_id + 1)
    )


def lease_is_released_when_the_pull_begins(patch: pytest.MonkeyPatch) -> None:
    sound = RequestDesk._start_leg

    def start_leg(self, command):
        sound(self, command)
        request = self._requests.get(command.request_id)
        if command.lease_id is not None and request is not None:
            owner = self.workers.attached.get(request.handoff.engine)
            if owner is not None:
                self._utilities.release(owner, command.lease_id)

    patch.setattr(RequestDesk, "_start_leg", start_leg)


def freed_room_is_not_offered_after_a_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lines, "fleet_changed", lambda self: None)


def gateway_waits_for_both_roles(patch: pytest.MonkeyPatch) -> None:
    sound = Dispatcher._greet

    def greet(self):
        if len({worker.role for worker in self.workers.attached.values()}) > 1:
            sound(self)

    patch.setattr(Dispatcher, "_greet", greet)


def waiting_time_is_never_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FairQueue, "expire", lambda self, *, now_s: [])


def outputs_join_what_was_posted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joins, "clear", lambda self: None)


def joined_end_forgets_its_tokens(patch: pytest.MonkeyPatch) -> None:
    sound = OutputCodec.join_end

    def join_end(self, output, end):
        sound(self, output, [end[0], [], *end[2:]])

    patch.setattr(OutputCodec, "join_end", join_end)


def an_abort_is_not_booked(patch: pytest.MonkeyPatch) -> None:
    sound = Bookings.ended

    def ended(self, request, finish):
        if finish != "abort":
            sound(self, request, finish)

    patch.setattr(Bookings, "ended", ended)


@dataclass(frozen=True)
class Planted:
    """A bug, the rule that it breaks, and within how many seeds that must show."""

    plant: Plant
    rule: str
    within_seeds: int


BUGS = [
    Planted(lease_is_forgotten_at_abort, "InvariantError in check_leases", 100),
    Planted(retired_generation_is_still_heard, "tokens are contiguous", 500),
    Planted(queued_twice_after_a_loss, "InvariantError in check", 100),
    Planted(slots_of_a_lost_worker_are_kept, "InvariantError in check", 200),
    Planted(drained_with_a_lease_left, "a drained worker holds nothing", 500),
    Planted(generation_is_used_again, "generations are never used twice", 100),
    Planted(queue_takes_one_more, "no queue passes its limit", 100),
    Planted(resumed_answer_begins_again, "tokens are contiguous", 100),
    Planted(leased_blocks_are_not_pinned, "InvariantError in check", 100),
    Planted(release_names_the_next_lease, "nothing is left", 100),
    Planted(lease_is_released_when_the_pull_begins, "what is pulled is leased", 100),
    Planted(freed_room_is_not_offered_after_a_loss, "nothing waits for ever", 100),
    Planted(gateway_waits_for_both_roles, "nothing waits for ever", 100),
    Planted(waiting_time_is_never_up, "nothing waits for ever", 100),
    Planted(outputs_join_what_was_posted, "tokens are contiguous", 100),
    Planted(joined_end_forgets_its_tokens, "an answer is whole", 100),
    Planted(an_abort_is_not_booked, "every end is booked", 100),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.plant.__name__)
def test_planted_bug_is_found(bug: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    failures = (run(plan_of(seed)) for seed in range(bug.within_seeds))
    rules = (failure.rule for failure in failures if failure is not None)
    assert bug.rule in rules, f"not found within {bug.within_seeds} seeds"


def test_story_of_a_planted_bug_is_short_and_names_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resumed_answer_begins_again(monkeypatch)
    failures = (run(plan_of(seed)) for seed in range(100))
    failure = shortest(next(failure for failure in failures if failure is not None))
    assert len(failure.plan.requests) == 1
    assert len(failure.plan.faults) <= 2
    told = "\n".join(describe(failure))
    assert "FAULT" in told
    assert told.splitlines()[-1].startswith("tokens are contiguous: request ")
