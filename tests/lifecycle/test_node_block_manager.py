"""What a node does about its block manager: it comes back, and nobody else notices."""

import pytest

from nodeserve.lifecycle.messages import (
    AnnounceReady,
    KillProcess,
    NodeStarted,
    ProcessReady,
    ProcessSick,
    RestartAsked,
    StopAsked,
    TerminateProcess,
    TimeElapsed,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.wire.kinds import ProcessKind
from tests.lifecycle.living import PLANS, Node, spawned, told

MANAGER = "block-manager"


@pytest.fixture
def node():
    plans = [*PLANS, SlotPlan(MANAGER, ProcessKind.BLOCK_MANAGER, "forkserver")]
    node = Node(plans)
    node.tell(NodeStarted())
    node.tell(ProcessReady(node.generation("forkserver")))
    node.tell(ProcessReady(node.generation("dispatcher")))
    for name in ("prefill-0", "decode-0"):
        node.engine_ready(name)
        node.routed(name)
    assert node.tell(ProcessReady(node.generation(MANAGER))) == []
    assert node.tell(ProcessReady(node.generation("gateway-api"))) == [AnnounceReady()]
    return node


def test_its_death_degrades_the_node_and_stops_nobody(node):
    commands = node.exits(MANAGER)
    assert (told(commands), node.life.state) == ([], "degraded")
    assert node.life.detail == "block-manager is backoff"
    assert spawned(node.tell(TimeElapsed())) == [MANAGER]
    node.tell(ProcessReady(node.generation(MANAGER)))
    assert node.life.state == "ready"
    others = [slot for slot in node.life.slots.values() if slot.name != MANAGER]
    assert {slot.incarnations for slot in others} == {1}


def test_one_that_dies_too_often_stays_down_and_the_node_serves_on(node):
    for _ in range(6):
        node.exits(MANAGER)
        node.tell(TimeElapsed(), at_s=node.life.wake_at_s or node.now_s)
    assert node.phase(MANAGER) is Phase.FAILED
    assert node.life.state == "degraded"
    assert (
        node.life.detail
        == "block-manager is failed (`nodeserve restart block-manager` tries again)"
    )


def test_one_that_hangs_is_killed(node):
    generation = node.generation(MANAGER)
    assert node.tell(ProcessSick(generation, "was stopped")) == [KillProcess(generation)]
    assert node.life.state == "degraded"


def test_it_is_restarted_without_ado_since_nothing_is_cut(node):
    generation = node.generation(MANAGER)
    asked = RestartAsked(MANAGER, immediately=False)
    assert node.tell(asked) == [TerminateProcess(generation)]
    assert spawned(node.exits(MANAGER, exit_code=0)) == [MANAGER]
    assert node.generation(MANAGER) > generation


def test_it_ends_when_nobody_is_left_to_ask_it(node):
    node.tell(StopAsked())
    ended = []
    for name in ("gateway-api", "prefill-0", "decode-0", "dispatcher", MANAGER):
        assert node.phase(MANAGER) is (Phase.STOPPING if name == MANAGER else Phase.READY)
        ended += [c.generation for c in node.exits(name) if isinstance(c, TerminateProcess)]
    assert ended[-2:] == [node.generation(MANAGER), node.generation("forkserver")]
