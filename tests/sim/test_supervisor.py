"""Claims about the shell around the node's life."""

from nodeserve.lifecycle.messages import DrainAsked, RoleAsked
from nodeserve.sim.faults import FaultKind
from nodeserve.sim.node import SimNode
from nodeserve.sim.supervisor import SimSupervisor, slot_plans
from nodeserve.wire.control import WorkerDrained, WorkerServing
from nodeserve.wire.kinds import Role
from tests.sim.plans import PAIR, fault, ran, request, told


def serving() -> SimNode:
    node = SimNode(PAIR, is_told=True)
    node.supervisor.start()
    while node.supervisor.life.state != "ready":
        assert node.queue.run_next()
    return node


def test_the_node_has_the_processes_of_its_plan() -> None:
    names = [plan.name for plan in slot_plans(PAIR)]
    assert names == ["forkserver", "dispatcher", "prefill-0", "decode-1", "gateway-0"]
    assert len(serving().supervisor.processes) == len(names)


def test_only_the_present_dispatcher_speaks_for_routing() -> None:
    node = serving()
    supervisor: SimSupervisor = node.supervisor
    worker = supervisor.life.slots["decode-1"]
    supervisor.wish(DrainAsked("decode-1", force=True))
    supervisor.hear(99, WorkerDrained(generation=worker.generation))
    assert worker.life.phase == "ready"
    supervisor.hear(worker.generation, WorkerServing(generation=worker.generation))
    assert not told(node, "supervisor hears: worker emptied")


def test_what_an_operator_cannot_have_is_refused() -> None:
    node = serving()
    node.supervisor.wish(RoleAsked("nobody", Role.DECODE))
    assert told(node, "supervisor refuses", "nobody does not exist")


def test_a_start_without_its_fork_server_fails_and_is_tried_again() -> None:
    node = ran(
        request(),
        fault(FaultKind.KILL, "forkserver", at_s=0.6),
        fault(FaultKind.KILL, "prefill-0", at_s=0.6),
    )
    assert node.clients[0].ending == "answered"
    assert node.supervisor.life.state == "stopping"


def test_workers_that_are_down_are_started_by_the_operator() -> None:
    node = ran(request(), fault(FaultKind.DRAIN, "prefill-0"))
    assert told(node, "restart asked: process prefill-0")


def test_a_node_lives_on_without_its_block_manager() -> None:
    node = ran(request(), fault(FaultKind.KILL, "block-manager", at_s=0.55), has_tier=True)
    assert node.clients[0].ending == "answered"
    assert told(node, "supervisor says: spawn process: name block-manager")
    assert not told(node, "supervisor says: tell dispatcher", "Detach")
