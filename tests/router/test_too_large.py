"""Claims about prompts that fit into some workers only, or into none."""

from nodeserve.errors import RequestError
from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import (
    FailRequest,
    LegFinished,
    LegKind,
    LegStarted,
    PrefillFinished,
    ReleaseLease,
    RequestArrived,
    StartLeg,
    WorkerAttached,
    WorkerDraining,
    WorkerLost,
)
from nodeserve.wire.kinds import Role

SMALL, LARGE, OTHER = Generation(1), Generation(2), Generation(3)
R = RequestId("r1")
LEG1, LEG2 = LegId("r1.1"), LegId("r1.2")
LEASE = LeaseId(5)
BLOCK = 16


def worker(generation: Generation, num_blocks: int, role: Role = Role.AGGREGATED) -> WorkerAttached:
    return WorkerAttached(generation, role, num_blocks, BLOCK, 8)


def asks(blocks: int) -> RequestArrived:
    return RequestArrived(R, blocks * BLOCK, 16)


def refused(tokens: int, needs: int, has: int) -> list[FailRequest]:
    reason = (
        f"request r1 was not taken: its prompt of {tokens} tokens needs {needs} KV blocks, the"
        f" largest worker has {has} of 16 tokens; shorten the prompt or give workers more KV memory"
    )
    return [FailRequest(R, reason, RequestError.exit_code)]


def test_a_prompt_larger_than_every_worker_is_refused_at_once_with_the_numbers(talk):
    talk(worker(SMALL, 10))
    talk(worker(LARGE, 20))
    assert talk(RequestArrived(R, 20 * BLOCK + 1, 16)) == refused(321, 21, 20)
    assert talk.router.queued_count == talk.router.running_count == 0


def test_a_prompt_as_large_as_a_worker_runs_there_and_nowhere_else(talk):
    talk(worker(SMALL, 10))
    talk(worker(LARGE, 20))
    talk(worker(OTHER, 10))
    assert talk(asks(20)) == [StartLeg(R, LEG1, LARGE, LegKind.WHOLE)]


def test_a_prompt_that_no_decode_worker_holds_is_not_handed_over(talk):
    talk(worker(SMALL, 10, Role.DECODE))
    talk(worker(LARGE, 20, Role.PREFILL))
    assert talk(asks(15)) == [StartLeg(R, LEG1, LARGE, LegKind.WHOLE)]


def test_a_handoff_waits_for_a_decode_worker_that_holds_it(talk):
    talk(worker(LARGE, 20, Role.DECODE))
    talk(worker(SMALL, 10, Role.DECODE))
    talk(worker(OTHER, 20, Role.PREFILL))
    assert talk(asks(15)) == [StartLeg(R, LEG1, OTHER, LegKind.PREFILL)]
    talk(WorkerLost(LARGE))
    # Only its own prefill worker holds it now.
    release, start = talk(PrefillFinished(LEG1, LEASE))
    assert release == ReleaseLease(OTHER, LEASE)
    assert start == StartLeg(R, LEG2, OTHER, LegKind.WHOLE)
    talk(LegStarted(LEG2))
    talk(LegFinished(LEG2))
    assert talk.router.running_count == 0


def test_a_prompt_may_wait_while_no_worker_is_there_and_is_refused_by_the_first_too_small(talk):
    assert talk(asks(15)) == []
    assert talk(worker(SMALL, 10)) == refused(240, 15, 10)


def test_a_waiting_prompt_is_refused_when_the_last_worker_that_holds_it_drains(talk):
    talk(worker(SMALL, 10))
    talk(worker(LARGE, 20))
    for number in range(8):
        talk(RequestArrived(RequestId(f"other-{number}"), 15 * BLOCK, 16))
    assert talk(asks(15)) == []
    drained = talk(WorkerDraining(LARGE))
    assert drained[-1:] == refused(240, 15, 10)
    assert len(drained) == 8


def test_a_running_prompt_is_refused_when_the_last_worker_that_holds_it_dies(talk):
    talk(worker(SMALL, 10))
    talk(worker(LARGE, 20))
    talk(asks(15))
    assert talk(WorkerLost(LARGE)) == refused(240, 15, 10)
    assert talk.router.queued_count == talk.router.running_count == 0


def test_a_prompt_beyond_the_models_length_on_a_worker_runs_elsewhere_or_nowhere(talk):
    """Where the length is being changed, front ends let through what some engines die of."""
    talk(WorkerAttached(SMALL, Role.AGGREGATED, 100, BLOCK, 8, max_model_len=256))
    talk(WorkerAttached(LARGE, Role.AGGREGATED, 100, BLOCK, 8, max_model_len=512))
    assert talk(RequestArrived(R, 256, 16)) == [StartLeg(R, LEG1, LARGE, LegKind.WHOLE)]
    (failed,) = talk(RequestArrived(RequestId("r2"), 512, 16))
    assert isinstance(failed, FailRequest)
    assert "512 tokens is too long for every worker: max_model_len is 512" in failed.reason
