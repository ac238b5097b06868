"""Claims about who is failed for the workers that died under it, and who is spared."""

from nodeserve.ids import Generation, LegId, RequestId
from nodeserve.router.losses import MAX_IN_A_ROW, MAX_IN_ALL, Losses
from nodeserve.router.messages import (
    FailRequest,
    LegFinished,
    LegStarted,
    RequestArrived,
    StartLeg,
    WorkerLost,
)
from nodeserve.wire.kinds import Role
from tests.router.talking import attached

POISON = RequestId("poison")
NUM_OTHERS = 12


def test_an_answer_makes_the_count_begin_anew():
    losses = Losses()
    for _ in range(MAX_IN_A_ROW - 1):
        losses.worker_died()
    assert losses.is_last_chance
    losses.answered()
    assert not losses.is_last_chance
    losses.worker_died()
    assert losses.why_too_many() is None


def test_deaths_in_a_row_or_many_in_all_are_too_many():
    losses = Losses()
    for _ in range(MAX_IN_A_ROW):
        assert losses.why_too_many() is None
        losses.worker_died()
    assert "3 workers died under it in a row" in str(losses.why_too_many())
    losses = Losses()
    for _ in range(MAX_IN_ALL):
        assert losses.why_too_many() is None
        losses.owner_died()
    assert "10 workers died" in str(losses.why_too_many())


def test_a_request_that_kills_its_workers_takes_nobody_with_it(talk):
    """Every worker dies at its step with the poison, and everybody that waits there with it."""
    workers = [Generation(number) for number in range(1, 8)]
    for generation in workers[:2]:
        talk(attached(generation, Role.AGGREGATED))
    waiting: dict[Generation, list[LegId]] = {}
    answered: set[LegId] = set()
    failed: list[str] = []
    deaths = 0

    def carry_out(commands):
        for command in commands:
            if isinstance(command, StartLeg):
                waiting.setdefault(command.generation, []).append(command.leg_id)
            elif isinstance(command, FailRequest):
                failed.append(command.request_id)

    for number in range(NUM_OTHERS):
        carry_out(talk(RequestArrived(RequestId(f"r{number}"), 16, 100, restorable=True)))
        if number == NUM_OTHERS // 2:
            carry_out(talk(RequestArrived(POISON, 16, 100, restorable=True)))
    while any(waiting.values()):
        generation = next(worker for worker, legs in waiting.items() if legs)
        legs = waiting.pop(generation)
        if any(leg.startswith(POISON) for leg in legs):
            deaths += 1
            carry_out(talk(WorkerLost(generation)))
            carry_out(talk(attached(workers[1 + deaths], Role.AGGREGATED)))
        else:
            for leg in legs:
                answered.add(leg)
                carry_out(talk(LegStarted(leg)))
    assert (failed, deaths) == ([POISON], MAX_IN_A_ROW)
    for leg in answered:
        talk(LegFinished(leg))
    assert talk.router.running_count == talk.router.queued_count == 0
