"""Claims about running seeds and shortening what failed."""

from dataclasses import replace

import pytest

from nodeserve.sim.faults import FaultKind, plan_of
from nodeserve.sim.run import describe, run, shortest
from nodeserve.wire.engine_core import RequestCodec
from tests.sim.plans import PAIR, fault, request

BUSY = replace(
    PAIR,
    requests=tuple(request(number, arrive_s=0.5 + number / 10) for number in range(5)),
    faults=(
        fault(FaultKind.SLOW, "prefill-0", 2.0, at_s=0.45),
        fault(FaultKind.KILL, "decode-1", at_s=0.65),
        fault(FaultKind.LEAP, "", 1.0, at_s=0.9),
    ),
)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let resumed answers begin again."""
    monkeypatch.setattr(
        RequestCodec, "resumed_leg", lambda self, add, leg_id, _sent: self.whole_leg(add, leg_id)
    )


def test_a_sound_node_fails_nothing_and_the_same_plan_is_the_same_run() -> None:
    assert run(BUSY) is None
    assert run(plan_of(3), is_told=True) == run(plan_of(3), is_told=True)


@pytest.mark.usefixtures("broken")
def test_a_failure_names_its_rule_and_is_told_on_demand() -> None:
    failure, again = run(BUSY), run(BUSY, is_told=True)
    assert failure is not None
    assert again is not None
    assert failure.rule == again.rule == "tokens are contiguous"
    assert failure.story == ()
    assert any("FAULT decode-1 is killed" in line for line in again.story)


@pytest.mark.usefixtures("broken")
def test_the_shortest_story_has_only_what_it_takes() -> None:
    failure = run(BUSY)
    assert failure is not None
    short = shortest(failure)
    assert [part.kind for part in short.plan.faults] == [FaultKind.KILL]
    assert len(short.plan.requests) == 1
    text = "\n".join(describe(short))
    assert text.startswith("seed 1 fails: tokens are contiguous\nnode: prefill-0 (20 blocks")
    assert "fault: 0.6500 s: decode-1 is killed" in text


def test_whatever_a_core_raises_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> bytes:
        raise KeyError("gone")

    monkeypatch.setattr(RequestCodec, "prefill_leg", fail)
    failure = run(BUSY)
    assert failure is not None
    assert failure.rule == "KeyError in fail"
    assert "gone" in failure.detail
