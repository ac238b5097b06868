import pytest

from nodeserve.errors import RequestError
from nodeserve.lifecycle.messages import (
    AnnounceReady,
    ConnectGateway,
    DrainAsked,
    EngineReady,
    ExitNode,
    KillProcess,
    NodeEmptied,
    NodeStarted,
    ProcessExited,
    ProcessReady,
    ProcessSick,
    RestartAsked,
    RoleAsked,
    SpawnProcess,
    StopAccepting,
    StopAsked,
    TellDispatcher,
    TerminateProcess,
    TimeElapsed,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.node import NodeLife, NodePhase
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.wire.control import (
    AttachWorker,
    DetachGateway,
    DetachWorker,
    DrainNode,
    DrainWorker,
    SetWorkerRole,
    WireFields,
    WorkerReady,
)
from nodeserve.wire.kinds import ProcessKind, Role

PLANS = [
    SlotPlan("forkserver", ProcessKind.FORKSERVER),
    SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
    SlotPlan("prefill-0", ProcessKind.WORKER, "forkserver", Role.PREFILL),
    SlotPlan("decode-0", ProcessKind.WORKER, "forkserver", Role.DECODE),
    SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver"),
]


class Node:
    """A NodeLife and the answers of a well-behaved world."""

    def __init__(self, plans=PLANS):
        self.life = NodeLife(plans, Patience(drain_s=60, stop_s=10))
        self.now_s = 0.0

    def tell(self, event, at_s=None):
        self.now_s = self.now_s if at_s is None else at_s
        commands = self.life.handle(event, now_s=self.now_s)
        self.life.check()
        return commands

    def generation(self, name):
        return self.life.slots[name].generation

    def phase(self, name):
        return self.life.slots[name].life.phase

    def exits(self, name, *, cause="killed by SIGKILL", retryable=True, exit_code=137):
        return self.tell(ProcessExited(self.generation(name), cause, retryable, exit_code))

    def engine_ready(self, name, features=("handoff",)):
        ready = WorkerReady(
            name=name,
            generation=self.generation(name),
            fields=WireFields(request=(), outputs=(), output=(), vllm_version="1"),
            ready=b"",
            block_size=16,
            num_gpu_blocks=100,
            kv_block_bytes=1,
            max_model_len=100,
            features=features,
        )
        return self.tell(EngineReady(ready))

    def routed(self, name):
        return self.tell(WorkerRouted(self.generation(name)))

    def up(self):
        self.tell(NodeStarted())
        self.tell(ProcessReady(self.generation("forkserver")))
        self.tell(ProcessReady(self.generation("dispatcher")))
        for name in ("prefill-0", "decode-0"):
            self.engine_ready(name)
            self.routed(name)
        assert self.tell(ProcessReady(self.generation("gateway-api"))) == [AnnounceReady()]
        return self


@pytest.fixture
def node():
    return Node()


def fenced_and_stopped(generation):
    message = DetachWorker(generation=generation, reason="it is stopped")
    return [TellDispatcher(message), TerminateProcess(generation)]


def spawned(commands):
    return [command.name for command in commands if isinstance(command, SpawnProcess)]


def told(commands):
    return [command.message for command in commands if isinstance(command, TellDispatcher)]


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
    assert ConnectGateway(node.generation("gateway-api")) in commands


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


def test_draining_a_worker_ends_it_when_it_is_empty_and_it_stays_down(node):
    node.up()
    generation = node.generation("decode-0")
    assert told(node.tell(DrainAsked("decode-0"))) == [DrainWorker(generation=generation)]
    assert node.life.slots["decode-0"].state() == "draining"
    assert node.tell(WorkerEmptied(generation)) == fenced_and_stopped(generation)
    node.exits("decode-0", exit_code=0)
    assert node.phase("decode-0") is Phase.DOWN
    assert node.life.state == "ready"


def test_a_worker_that_does_not_empty_in_time_is_stopped_all_the_same(node):
    node.up()
    generation = node.generation("decode-0")
    node.tell(DrainAsked("decode-0"))
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
    node.tell(DrainAsked("decode-0"))
    node.tell(WorkerEmptied(node.generation("decode-0")))
    node.exits("decode-0", exit_code=0)
    assert spawned(node.tell(RestartAsked("decode-0", immediately=False))) == ["decode-0"]


def test_a_role_change_re_initialises_nothing_and_survives_a_restart(node):
    node.up()
    generation = node.generation("decode-0")
    commands = node.tell(RoleAsked("decode-0", Role.PREFILL))
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


def test_a_worker_that_does_not_exist_is_refused_with_the_names_that_do(node):
    node.up()
    with pytest.raises(RequestError, match=r"decode-9 .* prefill-0, decode-0"):
        node.tell(DrainAsked("decode-9"))


def test_draining_a_worker_that_is_not_ready_is_refused(node):
    node.up()
    node.exits("decode-0")
    with pytest.raises(RequestError, match="decode-0 is backoff"):
        node.tell(DrainAsked("decode-0"))
