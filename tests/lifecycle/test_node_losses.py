"""What a node does about processes that die, hang or cannot start."""

import pytest

from nodeserve.lifecycle.messages import (
    ConnectGateway,
    DrainAsked,
    ExitNode,
    KillProcess,
    NodeStarted,
    ProcessExited,
    ProcessHeld,
    ProcessReady,
    ProcessSick,
    StopAsked,
    TellDispatcher,
    TimeElapsed,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.wire.control import (
    DetachGateway,
    DetachWorker,
)
from tests.lifecycle.living import Node, spawned, told


@pytest.fixture
def node():
    return Node()


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


def test_the_next_dispatcher_knows_that_a_worker_drains(node):
    node.up()
    node.tell(DrainAsked("decode-0", force=True))
    node.exits("dispatcher")
    node.tell(TimeElapsed(), at_s=1.0)
    attached = told(node.tell(ProcessReady(node.generation("dispatcher"))))
    assert [(m.name, m.draining) for m in attached] == [("prefill-0", False), ("decode-0", True)]


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


def test_a_sick_gateway_is_fenced_killed_and_started_again(node):
    node.up()
    old = node.generation("gateway-api")
    let_go = TellDispatcher(DetachGateway(generation=old))
    assert node.tell(ProcessSick(old, "no answer")) == [let_go, KillProcess(old)]
    assert node.exits("gateway-api") == []
    assert spawned(node.tell(TimeElapsed())) == ["gateway-api"]


def test_a_sick_process_serves_no_more_and_is_killed_once(node):
    node.up()
    old = node.generation("decode-0")
    node.tell(ProcessSick(old, "it is stopped"))
    assert node.tell(ProcessSick(old, "it is still stopped")) == []
    slot = node.life.slots["decode-0"]
    assert (slot.state(), slot.detail) == ("stopping", "it is stopped")
    assert node.life.state == "degraded"
    node.exits("dispatcher")
    node.tell(TimeElapsed())
    attached = told(node.tell(ProcessReady(node.generation("dispatcher"))))
    assert [message.name for message in attached] == ["prefill-0"]
    assert spawned(node.tell(TimeElapsed(), at_s=100.0)) == []  # its GPUs are still its own
    node.exits("decode-0")
    assert spawned(node.tell(TimeElapsed())) == ["decode-0"]


def test_a_killed_process_that_the_kernel_holds_says_so(node):
    node.up()
    old = node.generation("decode-0")
    node.tell(ProcessSick(old, "it is stopped"))
    assert node.tell(ProcessHeld(old, "the kernel holds it")) == []
    assert node.life.slots["decode-0"].detail == "the kernel holds it"
    assert node.tell(ProcessHeld(999, "fenced long ago")) == []


def test_a_sick_worker_is_killed_and_its_death_counts_like_any_other(node):
    node.up()
    for deaths in range(1, 6):
        old = node.generation("decode-0")
        fence, kill = node.tell(ProcessSick(old, "does not read"))
        assert kill == KillProcess(old)
        detach = fence.message
        assert node.exits("decode-0") == []
        assert (detach.generation, detach.reason) == (old, "does not read")
        assert node.life.slots["decode-0"].detail == "does not read"
        delay_s = node.life.wake_at_s - node.now_s
        least_s = 0.5 * 2 ** (deaths - 2) if deaths > 1 else 0.0
        assert least_s <= delay_s <= least_s * 1.2
        assert spawned(node.tell(TimeElapsed(), at_s=node.life.wake_at_s)) == ["decode-0"]
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
    assert node.tell(ProcessSick(sick, "vLLM 9 beside vLLM 8"))[-1] == KillProcess(sick)
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


def test_a_worker_that_dies_while_the_node_drains_stays_dead(node):
    node.up()
    node.tell(StopAsked())
    assert spawned(node.exits("decode-0")) == []
    assert node.tell(TimeElapsed(), at_s=1.0) == []
