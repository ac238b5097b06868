import pytest

from nodeserve.errors import RequestError
from nodeserve.lifecycle.fences import MAX_TURNS, NODE, RESTARTS, TURNS_WITHIN_S, DeviceState
from tests.lifecycle.wrong import finding


@pytest.fixture
def state():
    return DeviceState()


def test_a_fence_outlives_the_report_and_a_warning_does_not(state):
    state.report([finding("g0", "fence"), finding("g1", "warn")])
    assert len(state.all_findings) == 2
    state.report([])
    assert [f.meter for f in state.all_findings] == ["g0"]
    assert state.fence_of(("g1", "g0")).meter == "g0"
    assert state.fence_of(("g1",)) is None


@pytest.mark.parametrize("wrong", [finding("g0", "fence_node"), finding(NODE, "fence")])
def test_what_concerns_the_node_fences_every_gpu(state, wrong):
    state.report([finding("g0", "fence", signal="xid_2"), wrong])
    assert state.fence_of(("g3",)) == wrong
    assert state.fence_of(()) == wrong
    state.clear(wrong.meter)
    assert state.fence_of(("g3",)) is None


def test_what_is_cleared_is_not_heard_of_again_until_it_begins_anew(state):
    wrong = finding("g0", "fence", since=50.0)
    state.report([wrong])
    assert state.clear("g0") == [wrong]
    state.report([wrong])
    assert state.all_findings == ()
    assert state.fence_of(("g0",)) is None
    state.report([finding("g0", "fence", since=50.4)])  # as another monitor says it
    assert state.all_findings == ()
    state.report([finding("g0", "fence", since=60.0)])
    assert state.fence_of(("g0",)) is not None


def test_clearing_all_leaves_nothing(state):
    state.report([finding("g0", "fence"), finding("g1", "warn")])
    assert len(state.clear(None)) == 2
    assert state.all_findings == ()
    assert state.clear(None) == []


def test_a_gpu_without_a_finding_is_refused_with_those_that_have_one(state):
    state.report([finding("g0", "fence"), finding("g1", "warn")])
    with pytest.raises(RequestError, match=r"GPU g7 has no finding to clear; .* g0, g1"):
        state.clear("g7")
    assert len(state.all_findings) == 2


def test_a_restart_is_asked_for_once_for_each_finding(state):
    state.report([finding("g0", "restart", since=1.0)])
    assert len(state.new_restarts()) == 1
    state.report([finding("g0", "restart", since=1.0)])
    assert state.new_restarts() == []
    state.report([finding("g0", "restart", since=30.0)])
    assert len(state.new_restarts()) == 1


def test_a_gpu_that_took_its_worker_down_too_often_is_fenced(state):
    wrong = finding("g0", "restart")
    for place in range(MAX_TURNS):
        assert state.take_turn(wrong, float(place))
    assert not state.take_turn(wrong, 10.0)
    assert state.fences["g0"].signal == RESTARTS
    assert state.take_turn(finding("g1", "restart"), 10.0)
    state.clear("g0")
    assert state.take_turn(wrong, 11.0)


def test_turns_are_forgotten_after_an_hour(state):
    wrong = finding("g0", "restart")
    for place in range(2 * MAX_TURNS):
        assert state.take_turn(wrong, place * (TURNS_WITHIN_S / MAX_TURNS + 1))
