import pytest

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import DrainAsked, EndAsked, Replanned, RestartAsked
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.slot import Slot, SlotPlan
from nodeserve.lifecycle.slots import Slots
from nodeserve.wire.kinds import ProcessKind, Role

LIGHT = SlotPlan("forkserver", ProcessKind.FORKSERVER)
GATEWAY = SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver")
A, B, C = (SlotPlan(f"w-{n}", ProcessKind.WORKER, "forkserver", Role.DECODE) for n in "abc")


class Node:
    """Slots that run, and a rollout over them."""

    def __init__(self, *plans):
        self.slots = Slots.planned(plans).by_name
        for number, slot in enumerate(self.slots.values(), 1):
            slot.generation, slot.life.phase = Generation(number), Phase.READY
        self.rollout = Rollout()

    def head_for(self, *plans, restarts=(), additions_wait=False):
        self.rollout.extend(plans, self.slots, restarts=restarts, additions_wait=additions_wait)

    def steps(self):
        found = []
        while (step := self.rollout.next_step(self.slots)) is not None:
            found.append(step)
            if isinstance(step, Replanned):
                slots = Slots(self.slots)
                slots.replan(step.plans)
        return found

    def comes_back(self, name):
        slot = self.slots[name]
        slot.generation, slot.life.phase = Generation(slot.generation + 100), Phase.READY


def test_where_nothing_changes_nothing_is_done():
    node = Node(LIGHT, A, B)
    node.head_for(LIGHT, A, B)
    assert {type(step) for step in node.steps()} == {Replanned}
    assert list(node.slots) == ["forkserver", "w-a", "w-b"]
    assert node.steps() == []


def test_who_leaves_is_drained_and_forgotten_when_it_is_down():
    node = Node(LIGHT, A, B, GATEWAY)
    node.head_for(LIGHT, A)
    assert node.steps()[1:] == [
        DrainAsked("w-b", force=True),
        EndAsked("gateway-api", start_again=False),
    ]
    assert "w-b" in node.slots
    for name in ("w-b", "gateway-api"):
        assert node.steps() == []
        node.slots[name].life.phase = Phase.DOWN
    assert node.steps() == [Replanned((LIGHT, A))]
    assert list(node.slots) == ["forkserver", "w-a"]


@pytest.mark.parametrize("additions_wait", [False, True])
def test_who_comes_waits_only_for_the_place_of_one_that_leaves(additions_wait):
    node = Node(LIGHT, A)
    node.head_for(LIGHT, B, additions_wait=additions_wait)
    assert DrainAsked("w-a", force=True) in node.steps()
    assert ("w-b" in node.slots) is not additions_wait
    node.slots["w-a"].life.phase = Phase.DOWN
    assert node.steps() == [Replanned((LIGHT, B))]
    assert list(node.slots) == ["forkserver", "w-b"]


def test_restarts_come_one_after_another():
    node = Node(LIGHT, A, B, GATEWAY)
    node.head_for(LIGHT, A, B, GATEWAY, restarts=["gateway-api", "w-a", "w-b"])
    assert node.steps()[-1] == EndAsked("gateway-api", start_again=True)
    assert node.steps() == []
    node.comes_back("gateway-api")
    assert node.steps() == [RestartAsked("w-a", immediately=False)]
    node.slots["w-a"].life.phase = Phase.STARTING
    assert node.steps() == []
    node.comes_back("w-a")
    assert node.steps() == [RestartAsked("w-b", immediately=False)]
    node.comes_back("w-b")
    assert node.steps() == []
    assert node.rollout == Rollout(has_begun=True)


@pytest.mark.parametrize("phase", [Phase.BACKOFF, Phase.FAILED])
def test_the_first_that_does_not_come_back_ends_the_restarts(phase):
    node = Node(LIGHT, A, B, C)
    node.head_for(LIGHT, A, B, C, restarts=["w-a", "w-b", "w-c"])
    node.steps()
    node.slots["w-a"].life.phase = phase
    assert node.steps() == []
    assert (node.rollout.halted, node.rollout.restarts) == ("w-a", [])


def test_who_an_operator_has_drained_meanwhile_is_passed_over():
    node = Node(LIGHT, A, B)
    node.head_for(LIGHT, A, B, restarts=["w-a", "w-b"])
    assert node.steps()[-1] == RestartAsked("w-a", immediately=False)
    node.slots["w-a"].wanted = False
    assert node.steps() == [RestartAsked("w-b", immediately=False)]


def test_the_next_reload_goes_on_with_what_is_left():
    node = Node(LIGHT, A, B, C)
    node.head_for(LIGHT, A, B, restarts=["w-a", "w-b"])
    node.steps()
    node.head_for(LIGHT, A, B, restarts=["w-b"])
    assert node.steps() == [Replanned((LIGHT, A, B)), DrainAsked("w-c", force=True)]
    node.comes_back("w-a")
    assert node.steps() == [RestartAsked("w-b", immediately=False)]
    assert node.rollout.restarts == []


def test_a_slot_knows_its_new_plan_before_it_is_started_again():
    node = Node(LIGHT, GATEWAY)
    heavy = SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver-vllm")
    node.head_for(LIGHT, heavy, restarts=["gateway-api"])
    node.steps()
    assert node.slots["gateway-api"].plan is heavy
    assert isinstance(node.slots["gateway-api"], Slot)


def test_what_is_left_is_who_leaves_who_starts_anew_and_who_comes():
    node = Node(LIGHT, A, B, GATEWAY)
    node.head_for(LIGHT, A, C, GATEWAY, restarts=["w-a", "gateway-api"])
    assert node.rollout.left(node.slots) == ["w-b", "w-a", "gateway-api", "w-c"]
    node.steps()
    node.slots["w-b"].life.phase = Phase.DOWN
    node.steps()
    assert node.rollout.left(node.slots) == ["w-a", "gateway-api", "w-c"]
    node.slots["w-c"].life.phase = Phase.READY
    node.comes_back("w-a")
    node.steps()
    assert node.rollout.left(node.slots) == ["gateway-api"]
    node.comes_back("gateway-api")
    node.steps()
    assert node.rollout.left(node.slots) == []


def test_nobody_waits_for_who_comes_and_fails():
    node = Node(LIGHT, A)
    node.head_for(LIGHT, A, B)
    node.steps()
    assert node.rollout.left(node.slots) == ["w-b"]
    node.slots["w-b"].life.phase = Phase.BACKOFF
    assert node.rollout.left(node.slots) == []
