import pytest

from nodeserve.lifecycle.messages import (
    ConnectGateway,
    ExitNode,
    KillProcess,
    NodeEmptied,
    NodeStarted,
    ProcessReady,
    StopAccepting,
    StopAsked,
    TellDispatcher,
    TerminateProcess,
    TimeElapsed,
)
from nodeserve.lifecycle.shutdown import SETTLE_S
from nodeserve.lifecycle.state import NodePhase
from nodeserve.wire.control import (
    AttachWorker,
    DrainNode,
)
from nodeserve.wire.kinds import Role
from tests.lifecycle.living import Node, spawned, told


@pytest.fixture
def node():
    return Node()


def test_nothing_starts_before_its_fork_server_is_loaded(node):
    assert spawned(node.tell(NodeStarted())) == ["forkserver"]
    rest = node.tell(ProcessReady(node.generation("forkserver")))
    assert spawned(rest) == ["dispatcher", "prefill-0", "decode-0", "gateway-api"]


def test_a_worker_is_attached_once_both_it_and_the_dispatcher_are_ready(node):
    node.tell(NodeStarted())
    node.tell(ProcessReady(node.generation("forkserver")))
    assert node.engine_ready("decode-0") == []
    commands = node.tell(ProcessReady(node.generation("dispatcher")))
    (attach,) = told(commands)
    assert isinstance(attach, AttachWorker)
    assert (attach.name, attach.role) == ("decode-0", Role.DECODE)


def test_gateways_begin_at_the_first_start_when_every_worker_can_be_used(node):
    node.tell(NodeStarted())
    for name in ("forkserver", "dispatcher"):
        node.tell(ProcessReady(node.generation(name)))
    gateway = node.generation("gateway-api")
    assert node.life.gateway_spawned(gateway) == []
    node.engine_ready("prefill-0")
    assert node.routed("prefill-0") == []
    node.engine_ready("decode-0")
    assert node.routed("decode-0") == [ConnectGateway(gateway)]


def test_a_gateway_that_comes_back_waits_for_no_worker_that_is_down(node):
    node.up()
    node.exits("decode-0")
    node.exits("gateway-api")
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["decode-0", "gateway-api"]
    gateway = node.generation("gateway-api")
    assert node.life.gateway_spawned(gateway) == [ConnectGateway(gateway)]


def test_ready_is_announced_once_when_everything_serves(node):
    node.up()
    assert node.life.state == "ready"
    assert node.life.phase is NodePhase.READY


def test_stopping_lets_gateways_finish_then_ends_the_rest(node):
    node.up()
    terminate = TerminateProcess(node.generation("gateway-api"))
    assert node.tell(StopAsked()) == [StopAccepting(), terminate]
    assert node.life.state == "draining"
    ends = node.exits("gateway-api", exit_code=0)
    assert {c.generation for c in ends if isinstance(c, TerminateProcess)} == {
        node.generation(name) for name in ("dispatcher", "prefill-0", "decode-0")
    }
    for name in ("dispatcher", "prefill-0"):
        node.exits(name, exit_code=0)
    assert node.exits("decode-0", exit_code=0) == [TerminateProcess(node.generation("forkserver"))]
    assert node.exits("forkserver", exit_code=0) == [ExitNode(0)]


def test_a_client_that_does_not_read_cannot_hold_up_a_node_that_is_empty(node):
    node.up()
    node.tell(StopAsked())
    assert node.life.wake_at_s == SETTLE_S
    assert node.tell(TimeElapsed(), at_s=SETTLE_S) == [TellDispatcher(DrainNode())]
    assert node.tell(NodeEmptied(), at_s=3.0) == []
    assert node.life.wake_at_s == 13.0
    killed = node.tell(TimeElapsed(), at_s=13.0)
    assert killed == [KillProcess(node.generation("gateway-api"))]
    assert node.life.state == "draining"
    node.exits("gateway-api")
    assert node.life.state == "stopping"


def test_an_empty_dispatcher_ends_nothing_while_requests_are_still_on_their_way_to_it(node):
    node.up()
    assert node.tell(NodeEmptied()) == []
    node.tell(StopAsked())
    told = [c for c in node.tell(TimeElapsed(), at_s=SETTLE_S / 2) if isinstance(c, TellDispatcher)]
    assert told == []


def test_a_node_whose_gateways_are_down_has_nothing_to_drain(node):
    node.up()
    node.exits("gateway-api")
    commands = node.tell(StopAsked())
    assert commands[0] == StopAccepting()
    assert TerminateProcess(node.generation("dispatcher")) in commands
    assert node.life.state == "stopping"


def test_a_drain_that_takes_too_long_is_cut_off(node):
    node.up()
    node.tell(StopAsked())
    node.tell(TimeElapsed(), at_s=SETTLE_S)
    assert node.life.wake_at_s == 60.0
    ended = {c.generation for c in node.tell(TimeElapsed(), at_s=60.0)}
    gateway = node.generation("gateway-api")  # has been asked to end already
    assert ended == {slot.generation for slot in node.life.slots.values()} - {gateway}
    assert node.life.wake_at_s == 61.0
    assert KillProcess(gateway) in node.tell(TimeElapsed(), at_s=61.0)
    for name in ("gateway-api", "dispatcher", "prefill-0", "decode-0"):
        node.exits(name, exit_code=0)
    (end,) = node.exits("forkserver", exit_code=0)
    assert end.exit_code == 1
    assert "cut off" in end.reason


def test_a_second_stop_kills_everything_at_once(node):
    node.up()
    node.tell(StopAsked())
    killed = {c.generation for c in node.tell(StopAsked()) if isinstance(c, KillProcess)}
    assert killed == {slot.generation for slot in node.life.slots.values()}


def test_a_stop_while_starting_ends_without_failing(node):
    node.tell(NodeStarted())
    assert node.tell(StopAsked()) == [TerminateProcess(node.generation("forkserver"))]
    assert node.exits("forkserver", exit_code=0) == [ExitNode(0)]
