"""What a node does about GPUs that are not well."""

import itertools

import msgspec
import pytest

from nodeserve.errors import RequestError
from nodeserve.lifecycle.device_care import SETTLED_S
from nodeserve.lifecycle.fences import MAX_TURNS
from nodeserve.lifecycle.messages import (
    AnnounceReady,
    DrainAsked,
    ProcessSick,
    Replanned,
    RestartAsked,
    StopAsked,
    TerminateProcess,
    TimeElapsed,
    WorkerEmptied,
)
from nodeserve.lifecycle.messages import ProcessReady as Ready
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.lifecycle.state import NodeState
from nodeserve.wire.control import DrainWorker, SetWorkerRole
from nodeserve.wire.device_report import ACTIONS
from nodeserve.wire.kinds import ProcessKind, Role
from tests.lifecycle.living import fenced_and_stopped, spawned, told
from tests.lifecycle.wrong import PLANS, Ward, finding


@pytest.fixture
def ward():
    return Ward().up()


def drains(commands):
    return [m.generation for m in told(commands) if isinstance(m, DrainWorker)]


def ends(ward, name):
    """A worker that drains is empty, and ends."""
    generation = ward.generation(name)
    assert ward.tell(WorkerEmptied(generation)) == fenced_and_stopped(generation)
    return ward.exits(name, exit_code=0)


def test_a_fenced_gpus_worker_is_drained_and_ended_and_not_started(ward):
    generation = ward.generation("decode-1")
    assert drains(ward.report(finding("g3", "fence"))) == [generation]
    assert ward.state_of("decode-1") == "draining"
    assert spawned(ends(ward, "decode-1")) == []
    assert ward.state_of("decode-1") == "fenced"
    assert ward.life.state == "degraded"
    assert "decode-1 is fenced: GPU g3 has xid_1 (it is so)" in ward.life.detail
    assert "`nodeserve health clear g3`" in ward.life.detail


def test_the_same_report_again_changes_nothing(ward):
    ward.report(finding("g3", "fence"))
    assert ward.report(finding("g3", "fence")) == []
    ends(ward, "decode-1")
    assert ward.report(finding("g3", "fence")) == []
    assert ward.report() == []
    assert ward.tell(TimeElapsed(), at_s=5000.0) == []
    assert ward.state_of("decode-1") == "fenced"


def test_a_cleared_gpus_worker_starts_again(ward):
    ward.report(finding("g3", "fence"))
    ends(ward, "decode-1")
    assert spawned(ward.cleared("g3")) == ["decode-1"]
    ward.serve("decode-1")
    assert ward.life.state == "ready"
    assert ward.report(finding("g3", "fence")) == []


def test_a_gpu_that_is_cleared_while_its_worker_drains_gets_it_back_afterwards(ward):
    ward.report(finding("g3", "fence"))
    assert ward.cleared("g3") == []
    assert spawned(ends(ward, "decode-1")) == ["decode-1"]


def test_a_worker_that_an_operator_wants_down_stays_down_when_its_gpu_is_cleared(ward):
    ward.report(finding("g3", "fence"))
    ends(ward, "decode-1")
    ward.tell(DrainAsked("decode-1", force=True))
    assert spawned(ward.cleared(None)) == []
    assert ward.state_of("decode-1") == "down"


def test_an_operator_cannot_start_a_worker_on_a_fenced_gpu(ward):
    ward.report(finding("g3", "fence"))
    for immediately in (False, True):
        with pytest.raises(
            RequestError, match=r"decode-1 may not start: GPU g3 .* health clear g3"
        ):
            ward.tell(RestartAsked("decode-1", immediately=immediately))
    ends(ward, "decode-1")
    with pytest.raises(RequestError, match="health clear"):
        ward.tell(RestartAsked("decode-1", immediately=False))


def test_when_the_last_decode_workers_are_fenced_a_prefill_worker_stands_in_until_one_is_back(ward):
    assert not any(isinstance(m, SetWorkerRole) for m in told(ward.report(finding("g2", "fence"))))
    commands = ward.report(finding("g2", "fence"), finding("g3", "fence"))
    stands_in = ward.generation("prefill-0")
    # There must be a place to go to before anybody drains.
    assert told(commands)[0] == SetWorkerRole(generation=stands_in, role=Role.AGGREGATED)
    assert drains(commands) == [ward.generation("decode-1")]
    assert "prefill-0 stands in: aggregated instead of prefill" in ward.life.detail
    for name in ("decode-0", "decode-1"):
        ends(ward, name)
    assert ward.life.state == "degraded"
    assert not any(isinstance(m, SetWorkerRole) for m in told(ward.cleared("g3")))
    ward.engine_ready("decode-1")
    back = SetWorkerRole(generation=stands_in, role=Role.PREFILL)
    assert told(ward.routed("decode-1")) == [back]
    assert ward.life.slots["prefill-0"].role is Role.PREFILL


def test_nobody_stands_in_while_a_decode_worker_is_only_restarting(ward):
    ward.exits("decode-0")
    assert not any(isinstance(m, SetWorkerRole) for m in told(ward.report(finding("g3", "fence"))))


def test_a_node_whose_prefill_workers_are_fenced_needs_nobody_to_stand_in(ward):
    commands = ward.report(finding("g0", "fence"), finding("g1", "fence"))
    assert not any(isinstance(m, SetWorkerRole) for m in told(commands))
    assert "no worker prefills" in ward.life.detail


@pytest.mark.parametrize(
    "wrong",
    [[finding("g1", "fence_node")], [finding(f"g{place}", "fence") for place in range(4)]],
)
def test_a_node_whose_last_worker_is_fenced_says_that_it_is_unavailable(ward, wrong):
    assert len(drains(ward.report(*wrong))) == 4
    assert ward.life.state == "unavailable"
    for name in ward.workers:
        ends(ward, name)
    assert ward.life.state == "unavailable"
    assert "decode-0 is fenced: GPU g" in ward.life.detail
    assert len(spawned(ward.cleared(None))) == 4


def test_a_drain_lasts_as_long_as_its_finding_and_spares_the_last_worker(ward):
    bad = [finding(f"g{place}", "drain") for place in range(4)]
    assert len(drains(ward.report(*bad[:1]))) == 1
    assert drains(ward.report(*bad[:1])) == []
    ends(ward, "prefill-0")
    assert ward.state_of("prefill-0") == "fenced"
    assert spawned(ward.report()) == ["prefill-0"]
    ward.serve("prefill-0")
    assert len(drains(ward.report(*bad))) == 3
    assert ward.report(*bad) == []
    (spared,) = [name for name in ward.workers if ward.life.slots[name].fence is None]
    assert f"{spared} serves on as the last worker, though GPU " in ward.life.detail
    assert ward.life.state == "degraded"


def test_a_held_worker_comes_back_when_the_others_are_fenced(ward):
    ward.report(finding("g0", "drain"))
    ends(ward, "prefill-0")
    others = [finding(f"g{place}", "fence") for place in (1, 2, 3)]
    assert spawned(ward.report(finding("g0", "drain"), *others)) == ["prefill-0"]
    ward.serve("prefill-0")
    assert ward.life.state == "degraded"


def test_a_restart_drains_the_worker_and_starts_it_once(ward):
    generation = ward.generation("decode-0")
    assert drains(ward.report(finding("g2", "restart"))) == [generation]
    assert ward.report(finding("g2", "restart")) == []
    assert spawned(ends(ward, "decode-0")) == ["decode-0"]
    ward.serve("decode-0")
    assert ward.report(finding("g2", "restart"), at_s=5000.0) == []
    assert ward.life.state == "ready"


def test_a_worker_that_has_just_begun_is_not_restarted_for_what_ended_the_one_before(ward):
    ward.exits("decode-0")
    ward.tell(TimeElapsed(), at_s=1001.0)
    ward.serve("decode-0")
    assert ward.report(finding("g2", "restart"), at_s=1002.0) == []
    late = finding("g2", "restart", since=100.0)
    assert len(drains(ward.report(late, at_s=1002.0 + SETTLED_S))) == 1


@pytest.mark.parametrize("action", ["restart", "drain"])
def test_a_finding_that_comes_and_goes_fences_the_gpu_instead_of_restarting_for_ever(ward, action):
    at_s, starts = 1000.0, 0
    for turn in range(3 * MAX_TURNS):
        ward.report(finding("g2", action, since=100.0 * turn), at_s=at_s)
        if ward.life.slots["decode-0"].draining:
            starts += len(spawned(ends(ward, "decode-0")))
        starts += len(spawned(ward.report(at_s=at_s + SETTLED_S)))
        if ward.phase("decode-0") is Phase.STARTING:
            ward.serve("decode-0")
        at_s += 2 * SETTLED_S
    assert starts == MAX_TURNS
    assert ward.state_of("decode-0") == "fenced"
    assert "restarts" in ward.life.slots["decode-0"].fence
    assert spawned(ward.cleared("g2")) == ["decode-0"]


@pytest.mark.parametrize("action", ["none", "warn"])
def test_what_asks_for_nothing_changes_nothing(ward, action):
    assert ward.report(finding("g2", action)) == []
    assert ward.life.state == "ready"
    assert ward.life.kept.devices.all_findings


def test_a_gpu_of_no_worker_is_noted_and_fences_who_gets_it(ward):
    assert ward.report(finding("g9", "fence")) == []
    plan = SlotPlan("decode-2", ProcessKind.WORKER, "forkserver", Role.DECODE, ("g9",))
    assert spawned(ward.tell(Replanned((*PLANS, plan)))) == []
    assert ward.state_of("decode-2") == "fenced"
    rollout = Rollout(coming=["decode-2"])
    assert rollout.left(ward.life.slots) == []
    assert spawned(ward.cleared("g9")) == ["decode-2"]


def test_a_reload_does_not_wait_for_a_worker_that_is_fenced(ward):
    rollout = Rollout(restarts=["decode-1", "decode-0"])
    assert rollout.next_step(ward.life.slots) == RestartAsked("decode-1", immediately=False)
    ward.report(finding("g3", "fence"), finding("g2", "fence"))
    assert rollout.next_step(ward.life.slots) is None
    assert rollout.left(ward.life.slots) == []


# ------------------------------------------------------------------- at the start and end


def test_a_node_starts_without_the_worker_of_a_fenced_gpu():
    ward = Ward()
    ward.begin()
    for name in ward.workers[:3]:
        ward.serve(name)
    generation = ward.generation("decode-1")
    assert ward.report(finding("g3", "fence"))[0] == TerminateProcess(generation)
    ward.exits("decode-1", exit_code=0)
    gateway = ward.generation("gateway-api")
    assert ward.tell(Ready(gateway)) == [AnnounceReady()]
    assert ward.life.state == "degraded"


def test_a_node_becomes_ready_when_the_last_one_it_waited_for_is_fenced():
    ward = Ward()
    ward.begin()
    for name in ward.workers[:3]:
        ward.serve(name)
    ward.tell(Ready(ward.generation("gateway-api")))
    assert AnnounceReady() in ward.report(finding("g3", "fence"))


def test_a_node_that_starts_with_every_gpu_fenced_says_so_and_starts_when_they_are_cleared():
    ward = Ward()
    ward.begin()
    ward.report(finding("g0", "fence_node"))
    for name in ward.workers:
        ward.exits(name, exit_code=0)
    assert ward.life.state == "unavailable"
    assert "health clear g0" in ward.life.detail
    assert len(spawned(ward.cleared("g0"))) == 4
    for name in ward.workers:
        ward.serve(name)
    assert ward.tell(Ready(ward.generation("gateway-api"))) == [AnnounceReady()]


def test_a_node_that_ends_acts_on_no_finding(ward):
    ward.tell(StopAsked())
    assert ward.report(finding("g3", "fence"), finding("g2", "restart")) == []


# ------------------------------------------------------------ who else comes and goes


def test_fences_outlive_the_supervisors_program(ward):
    ward.report(finding("g3", "fence"), finding("g1", "warn"))
    ends(ward, "decode-1")
    frame = msgspec.msgpack.encode(ward.life.kept)
    ward.life = NodeLife(PLANS, Patience(), msgspec.msgpack.decode(frame, type=NodeState))
    assert ward.tell(TimeElapsed()) == []
    assert ward.state_of("decode-1") == "fenced"
    assert len(ward.life.kept.devices.all_findings) == 2
    assert spawned(ward.cleared("g3")) == ["decode-1"]


def test_without_its_monitor_a_node_is_degraded_and_its_fences_stand():
    monitor = SlotPlan("monitor", ProcessKind.MONITOR, "forkserver")
    ward = Ward([*PLANS[:2], monitor, *PLANS[2:]])
    ward.begin()
    ward.tell(Ready(ward.generation("monitor")))
    for name in ward.workers:
        ward.serve(name)
    ward.tell(Ready(ward.generation("gateway-api")))
    ward.report(finding("g3", "fence"))
    ends(ward, "decode-1")
    ward.exits("monitor")
    assert ward.life.state == "degraded"
    assert "monitor is backoff" in ward.life.detail
    assert ward.state_of("decode-1") == "fenced"
    ward.report()  # the next monitor knows of nothing
    assert ward.state_of("decode-1") == "fenced"


def test_a_dispatcher_that_comes_back_hears_who_drains_and_who_stands_in(ward):
    ward.report(finding("g2", "fence"), finding("g3", "fence"))
    ward.exits("dispatcher")
    ward.tell(TimeElapsed(), at_s=1001.0)
    attached = {m.name: m for m in told(ward.tell(Ready(ward.generation("dispatcher"))))}
    assert attached["decode-0"].draining
    assert attached["prefill-0"].role is Role.AGGREGATED


# ------------------------------------------------- every action in every state of a worker


def bring_to(ward, state):
    """Bring decode-1 to a state, as the world would."""
    generation = ward.generation("decode-1")
    match state:
        case "starting":
            ward.exits("decode-1")
            ward.tell(TimeElapsed(), at_s=1001.0)
        case "backoff":
            for _ in range(2):
                ward.exits("decode-1")
                if ward.phase("decode-1") is Phase.BACKOFF and ward.life.wake_at_s <= ward.now_s:
                    ward.tell(TimeElapsed())
        case "failed":
            ward.exits("decode-1", retryable=False)
        case "draining":
            ward.tell(DrainAsked("decode-1", force=True))
        case "restarting":
            ward.tell(RestartAsked("decode-1", immediately=False))
        case "stopping":
            ward.tell(RestartAsked("decode-1", immediately=True))
        case "sick":
            ward.tell(ProcessSick(generation, "stopped"))
        case "down":
            ward.tell(DrainAsked("decode-1", force=True))
            ends(ward, "decode-1")
        case _:
            assert state == "ready"


STATES = (
    *("ready", "starting", "backoff", "failed", "draining", "restarting", "stopping", "sick"),
    "down",
)


@pytest.mark.parametrize(("action", "state"), [*itertools.product(ACTIONS, STATES)])
def test_every_action_meets_a_worker_in_every_state_and_can_be_taken_back(ward, action, state):
    bring_to(ward, state)
    wanted = ward.life.slots["decode-1"].wanted
    ward.report(finding("g3", action))
    assert ward.report(finding("g3", action)) == []
    slot = ward.life.slots["decode-1"]
    assert (slot.fence is not None) == (action in ("drain", "fence", "fence_node"))
    assert slot.wanted == wanted
    if slot.running and (slot.fence or slot.draining or slot.sick):
        ward.exits("decode-1", exit_code=0)
    if slot.fence is not None:
        assert ward.state_of("decode-1") == "fenced"
        assert ward.tell(TimeElapsed(), at_s=2000.0) is not None
        assert ward.phase("decode-1") is Phase.DOWN
    ward.report()
    ward.cleared()
    ward.tell(TimeElapsed(), at_s=9000.0)
    assert slot.fence is None
    if wanted and state != "failed":
        assert ward.phase("decode-1") in (Phase.STARTING, Phase.READY)
    elif not wanted:
        assert ward.phase("decode-1") is Phase.DOWN
