"""Claims about the plans that seeds stand for."""

from nodeserve.sim.faults import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Fault,
    FaultKind,
    PlannedRequest,
    plan_of,
)
from nodeserve.wire.kinds import Role


def test_a_seed_is_one_plan() -> None:
    assert plan_of(7) == plan_of(7) != plan_of(8)


def test_plans_of_a_few_seeds_have_every_fault_and_every_role() -> None:
    plans = [plan_of(seed) for seed in range(300)]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(FaultKind)
    assert {worker.role for plan in plans for worker in plan.workers} == set(Role)


def test_every_worker_holds_the_longest_request() -> None:
    for seed in range(100):
        plan = plan_of(seed)
        assert all(w.num_blocks * BLOCK_SIZE >= MAX_MODEL_LEN for w in plan.workers)
        assert all(r.prompt_tokens + r.max_tokens <= MAX_MODEL_LEN for r in plan.requests)


def test_prompts_of_a_family_begin_alike_and_others_share_nothing() -> None:
    short, long, other = (
        PlannedRequest(0, 0.0, 0, family, tokens, 1).prompt()
        for family, tokens in ((1, 5), (1, 9), (2, 9))
    )
    assert long[:5] == short
    assert not set(long) & set(other)


def test_faults_are_told_with_their_amount() -> None:
    hang = Fault(1.0, FaultKind.HANG, "decode-1", 0.25)
    assert str(hang) == "decode-1 stops for 0.250 s without a sign"
    role = Fault(1.0, FaultKind.ROLE, "decode-1", 1.0)
    assert str(role) == f"decode-1 gets another role: {list(Role)[1]}"
