"""What an operator wants of a worker: drain, restart, another role."""

import pytest

from nodeserve.errors import RequestError
from nodeserve.lifecycle.messages import (
    DrainAsked,
    NodeStarted,
    RestartAsked,
    RoleAsked,
    TerminateProcess,
    TimeElapsed,
    WorkerEmptied,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.wire.control import (
    DrainWorker,
    SetWorkerRole,
)
from nodeserve.wire.kinds import Role
from tests.lifecycle.living import Node, fenced_and_stopped, spawned, told


@pytest.fixture
def node():
    return Node()


def test_draining_a_worker_ends_it_when_it_is_empty_and_it_stays_down(node):
    node.up()
    node.tell(RoleAsked("prefill-0", Role.AGGREGATED))
    generation = node.generation("decode-0")
    assert told(node.tell(DrainAsked("decode-0"))) == [DrainWorker(generation=generation)]
    assert node.life.slots["decode-0"].state() == "draining"
    assert node.tell(WorkerEmptied(generation)) == fenced_and_stopped(generation)
    assert node.life.state == "ready"
    node.exits("decode-0", exit_code=0)
    assert node.phase("decode-0") is Phase.DOWN
    assert node.life.state == "ready"


def test_a_worker_that_does_not_empty_in_time_is_stopped_all_the_same(node):
    node.up()
    generation = node.generation("decode-0")
    node.tell(DrainAsked("decode-0", force=True))
    assert node.tell(TimeElapsed(), at_s=60.0) == fenced_and_stopped(generation)


def test_a_restart_at_once_fences_the_worker_before_it_may_say_that_it_ends(node):
    node.up()
    generation = node.generation("decode-0")
    commands = node.tell(RestartAsked("decode-0", immediately=True))
    assert commands == fenced_and_stopped(generation)
    assert told(node.exits("decode-0", exit_code=0)) == []


def test_restarting_a_worker_drains_it_and_starts_the_next_generation(node):
    node.up()
    generation = node.generation("decode-0")
    node.tell(RestartAsked("decode-0", immediately=False))
    node.tell(WorkerEmptied(generation))
    assert spawned(node.exits("decode-0", exit_code=0)) == ["decode-0"]


def test_a_drained_worker_can_be_started_again(node):
    node.up()
    node.tell(DrainAsked("decode-0", force=True))
    node.tell(WorkerEmptied(node.generation("decode-0")))
    node.exits("decode-0", exit_code=0)
    assert spawned(node.tell(RestartAsked("decode-0", immediately=False))) == ["decode-0"]


def test_a_role_change_re_initialises_nothing_and_survives_a_restart(node):
    node.up()
    generation = node.generation("decode-0")
    commands = node.tell(RoleAsked("decode-0", Role.PREFILL, force=True))
    assert told(commands) == [SetWorkerRole(generation=generation, role=Role.PREFILL)]
    assert len(commands) == 1
    node.exits("decode-0")
    node.tell(TimeElapsed(), at_s=0.5)
    (attach,) = told(node.engine_ready("decode-0"))
    assert attach.role is Role.PREFILL


def test_a_role_that_the_engine_cannot_take_is_refused_and_changes_nothing(node):
    node.up()
    node.engine_ready("decode-0", features=())
    with pytest.raises(RequestError, match="worker decode-0 cannot prefill"):
        node.tell(RoleAsked("decode-0", Role.PREFILL))
    assert node.life.slots["decode-0"].role is Role.DECODE
    assert len(told(node.tell(RoleAsked("decode-0", Role.AGGREGATED)))) == 1


@pytest.mark.parametrize(
    ("worker", "role", "does"),
    [("decode-0", Role.PREFILL, "decodes"), ("prefill-0", Role.DECODE, "prefills")],
)
def test_a_role_is_not_taken_from_its_last_worker_unless_forced(node, worker, role, does):
    node.up()
    with pytest.raises(RequestError, match=f"{worker} is the last one that {does}.* --force"):
        node.tell(RoleAsked(worker, role))
    assert told(node.tell(RoleAsked(worker, Role.AGGREGATED))) != []
    other = "decode-0" if worker == "prefill-0" else "prefill-0"
    assert told(node.tell(RoleAsked(other, role))) != []
    assert node.life.state == "ready"


def test_a_worker_that_does_not_exist_is_refused_with_the_names_that_do(node):
    node.up()
    with pytest.raises(RequestError, match=r"decode-9 .* prefill-0, decode-0"):
        node.tell(DrainAsked("decode-9"))


def test_a_drained_worker_may_be_drained_again(node):
    node.up()
    generation = node.generation("decode-0")
    node.tell(DrainAsked("decode-0", force=True))
    assert node.tell(DrainAsked("decode-0")) == []
    node.tell(WorkerEmptied(generation))
    assert node.tell(DrainAsked("decode-0")) == []
    assert node.exits("decode-0", exit_code=0) == []
    assert node.tell(DrainAsked("decode-0")) == []
    assert node.phase("decode-0") is Phase.DOWN


def test_a_worker_that_waits_for_its_next_start_stays_down_when_drained(node):
    node.up()
    node.exits("decode-0")
    assert node.tell(DrainAsked("decode-0")) == []
    assert node.phase("decode-0") is Phase.DOWN
    assert node.life.wake_at_s is None


def test_a_starting_worker_is_ended_when_drained(node):
    node.up()
    node.exits("decode-0")
    node.tell(TimeElapsed(), at_s=0.5)
    generation = node.generation("decode-0")
    assert node.tell(DrainAsked("decode-0")) == [TerminateProcess(generation)]
    node.exits("decode-0", exit_code=0)
    assert node.phase("decode-0") is Phase.DOWN


def test_a_worker_that_dies_while_it_drains_stays_down(node):
    node.up()
    node.tell(DrainAsked("decode-0", force=True))
    node.exits("decode-0")
    assert node.phase("decode-0") is Phase.DOWN
    assert spawned(node.tell(TimeElapsed(), at_s=60.0)) == []


def test_a_drain_behind_a_restart_wins(node):
    node.up()
    generation = node.generation("decode-0")
    node.tell(RestartAsked("decode-0", immediately=False))
    node.tell(DrainAsked("decode-0"))
    node.tell(WorkerEmptied(generation))
    assert spawned(node.exits("decode-0", exit_code=0)) == []
    assert node.phase("decode-0") is Phase.DOWN


@pytest.mark.parametrize(("worker", "does"), [("decode-0", "decodes"), ("prefill-0", "prefills")])
def test_the_last_worker_of_its_role_is_drained_by_force_only(node, worker, does):
    node.up()
    with pytest.raises(RequestError, match=f"{worker} is the last one that {does}.* --force"):
        node.tell(DrainAsked(worker))
    assert node.life.state == "ready"
    assert told(node.tell(DrainAsked(worker, force=True))) == [
        DrainWorker(generation=node.generation(worker))
    ]
    assert node.life.state == "degraded"
    assert node.life.detail == f"no worker {does}"


def test_a_node_that_has_not_started_drains_no_worker(node):
    node.tell(NodeStarted())
    with pytest.raises(RequestError, match="the node is starting"):
        node.tell(DrainAsked("decode-0"))
