import pytest

from nodeserve.lifecycle.messages import (
    ConnectGateway,
    ExitNode,
    KillProcess,
    NodeEmptied,
    NodeStarted,
    ProcessExited,
    ProcessReady,
    ProcessSick,
    StopAccepting,
    StopAsked,
    TellDispatcher,
    TerminateProcess,
    TimeElapsed,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.node import NodePhase
from nodeserve.lifecycle.process import Phase
from nodeserve.wire.control import (
    AttachWorker,
    DetachGateway,
    DetachWorker,
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


def test_a_worker_that_cannot_start_ends_the_node_with_its_cause(node):
    node.tell(NodeStarted())
    node.tell(ProcessReady(node.generation("forkserver")))
    node.exits("decode-0", cause="no such model", retryable=False, exit_code=78)
    assert node.life.state == "stopping"
    for name in ("gateway-api", "dispatcher", "prefill-0"):
        assert not any(isinstance(c, ExitNode) for c in node.exits(name))
    (end,) = node.exits("forkserver")
    assert end.exit_code == 78
    assert "decode-0" in end.reason
    assert "no such model" in end.reason


def test_a_dead_worker_is_detached_and_comes_back_as_another_generation(node):
    node.up()
    before = node.generation("decode-0")
    (detach,) = told(node.exits("decode-0"))
    assert isinstance(detach, DetachWorker)
    assert detach.generation == before
    assert node.life.state == "degraded"
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["decode-0"]
    assert node.generation("decode-0") > before
    node.engine_ready("decode-0")
    node.routed("decode-0")
    assert node.life.state == "ready"


def test_events_of_a_fenced_generation_change_nothing(node):
    node.up()
    old = node.generation("decode-0")
    node.exits("decode-0")
    node.tell(TimeElapsed(), at_s=0.5)
    for event in (
        ProcessReady(old),
        WorkerRouted(old),
        WorkerEmptied(old),
        ProcessExited(old, "late", True, 1),
        ProcessSick(old, "late"),
    ):
        assert node.tell(event) == []
    assert node.phase("decode-0") is Phase.STARTING


def test_the_dispatcher_and_its_gateways_are_one_restart_group(node):
    node.up()
    gateway = node.generation("gateway-api")
    assert node.exits("dispatcher") == [KillProcess(gateway)]
    assert spawned(node.exits("gateway-api")) == ["gateway-api"]
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["dispatcher"]
    commands = node.tell(ProcessReady(node.generation("dispatcher")))
    assert [message.name for message in told(commands)] == ["prefill-0", "decode-0"]
    assert ConnectGateway(node.generation("gateway-api")) in commands
    assert node.phase("decode-0") is Phase.READY


def test_a_dead_gateway_is_detached_and_started_again(node):
    node.up()
    old = node.generation("gateway-api")
    assert told(node.exits("gateway-api")) == [DetachGateway(generation=old)]
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["gateway-api"]


def test_a_sick_gateway_is_stopped_and_started_again(node):
    node.up()
    old = node.generation("gateway-api")
    assert node.tell(ProcessSick(old, "no answer")) == [TerminateProcess(old)]
    assert node.tell(TimeElapsed(), at_s=10.0) == [KillProcess(old)]
    assert spawned(node.exits("gateway-api")) == ["gateway-api"]


def test_a_sick_worker_is_killed_and_its_death_counts_like_any_other(node):
    node.up()
    for deaths in range(1, 6):
        old = node.generation("decode-0")
        assert node.tell(ProcessSick(old, "does not read")) == [KillProcess(old)]
        (detach,) = told(node.exits("decode-0"))
        assert (detach.generation, detach.reason) == (old, "does not read")
        assert node.life.slots["decode-0"].detail == "does not read"
        delay_s = 0.5 * 2 ** (deaths - 1)
        assert node.life.wake_at_s == node.now_s + delay_s
        assert spawned(node.tell(TimeElapsed(), at_s=node.now_s + delay_s)) == ["decode-0"]
        node.engine_ready("decode-0")
        node.routed("decode-0")
    node.tell(ProcessSick(node.generation("decode-0"), "does not read"))
    node.exits("decode-0")
    assert node.phase("decode-0") is Phase.FAILED


def test_a_worker_that_is_refused_at_the_first_start_ends_the_node_with_the_cause(node):
    node.tell(NodeStarted())
    node.tell(ProcessReady(node.generation("forkserver")))
    node.tell(ProcessReady(node.generation("dispatcher")))
    node.engine_ready("decode-0")
    sick = node.generation("decode-0")
    assert node.tell(ProcessSick(sick, "vLLM 9 beside vLLM 8")) == [KillProcess(sick)]
    node.exits("decode-0")
    for name in ("gateway-api", "dispatcher", "prefill-0"):
        node.exits(name)
    (end,) = node.exits("forkserver")
    assert "decode-0 failed to start: vLLM 9 beside vLLM 8" in end.reason


def test_a_fork_server_that_dies_takes_nobody_along(node):
    node.up()
    assert node.exits("forkserver") == []
    assert node.phase("decode-0") is Phase.READY
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["forkserver"]


def test_a_restart_waits_for_its_fork_server(node):
    node.up()
    node.exits("forkserver")
    node.exits("decode-0")
    assert spawned(node.tell(TimeElapsed(), at_s=0.5)) == ["forkserver"]
    node.tell(ProcessReady(node.generation("forkserver")))
    assert spawned(node.tell(TimeElapsed(), at_s=2.0)) == ["decode-0"]


def test_stopping_drains_first_then_ends_gateways_then_the_rest(node):
    node.up()
    assert node.tell(StopAsked()) == [StopAccepting(), TellDispatcher(DrainNode())]
    assert node.life.state == "draining"
    assert node.tell(NodeEmptied()) == [TerminateProcess(node.generation("gateway-api"))]
    ends = node.exits("gateway-api", exit_code=0)
    assert {c.generation for c in ends if isinstance(c, TerminateProcess)} == {
        node.generation(name) for name in ("dispatcher", "prefill-0", "decode-0")
    }
    for name in ("dispatcher", "prefill-0"):
        node.exits(name, exit_code=0)
    assert node.exits("decode-0", exit_code=0) == [TerminateProcess(node.generation("forkserver"))]
    assert node.exits("forkserver", exit_code=0) == [ExitNode(0)]


def test_a_drain_that_takes_too_long_is_cut_off(node):
    node.up()
    node.tell(StopAsked())
    assert node.life.wake_at_s == 60.0
    ended = {c.generation for c in node.tell(TimeElapsed(), at_s=60.0)}
    assert ended == {slot.generation for slot in node.life.slots.values()}
    assert node.life.wake_at_s == 61.0
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


def test_a_worker_that_dies_while_the_node_drains_stays_dead(node):
    node.up()
    node.tell(StopAsked())
    assert spawned(node.exits("decode-0")) == []
    assert node.tell(TimeElapsed(), at_s=1.0) == []
