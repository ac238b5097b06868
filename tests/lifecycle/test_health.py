import pytest

from nodeserve.lifecycle.health import can_serve, last_for, losses
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.lifecycle.slots import Slots
from nodeserve.wire.kinds import ProcessKind, Role


def ready(*roles):
    """The slots of a node of which everything is ready."""
    plans = [SlotPlan("dispatcher", ProcessKind.DISPATCHER)]
    plans.append(SlotPlan("gateway-api", ProcessKind.GATEWAY))
    plans += [SlotPlan(f"w-{n}", ProcessKind.WORKER, None, role) for n, role in enumerate(roles)]
    slots = Slots.planned(plans)
    for slot in slots.by_name.values():
        slot.life.phase = Phase.READY
    return slots


@pytest.mark.parametrize(
    "roles", [(Role.PREFILL, Role.DECODE), (Role.AGGREGATED,), (Role.DECODE, Role.DECODE)]
)
def test_a_whole_node_lacks_nothing(roles):
    assert losses(ready(*roles)) == []


def test_a_worker_that_an_operator_wants_down_is_no_loss_where_another_does_its_work():
    slots = ready(Role.PREFILL, Role.DECODE, Role.DECODE)
    slots.by_name["w-2"].wanted = False
    slots.by_name["w-2"].life.phase = Phase.DOWN
    assert losses(slots) == []


def test_a_lost_process_is_named_and_so_is_what_nobody_does():
    slots = ready(Role.PREFILL, Role.DECODE)
    slots.by_name["w-1"].life.phase = Phase.BACKOFF
    assert losses(slots) == ["no worker decodes", "w-1 is backoff"]
    slots.by_name["dispatcher"].life.phase = Phase.STARTING
    assert losses(slots)[1] == "dispatcher is starting"


def test_who_has_failed_is_named_with_the_command_that_brings_it_back():
    slots = ready(Role.AGGREGATED)
    slots.by_name["dispatcher"].life.phase = Phase.FAILED
    assert losses(slots) == ["dispatcher is failed (`nodeserve restart dispatcher` tries again)"]


def test_a_fork_server_is_missed_only_where_it_does_not_come_back():
    slots = Slots.planned([SlotPlan("forkserver", ProcessKind.FORKSERVER)])
    slots.by_name["forkserver"].life.phase = Phase.BACKOFF
    assert "forkserver" not in str(losses(slots))
    slots.by_name["forkserver"].life.phase = Phase.FAILED
    assert losses(slots)[-1] == "forkserver is failed (`nodeserve restart forkserver` tries again)"


def test_drained_prefill_workers_are_missed_and_re_used_ones_are_not():
    slots = ready(Role.PREFILL, Role.DECODE)
    slots.by_name["w-0"].draining = True
    assert losses(slots) == ["no worker prefills"]
    slots.by_name["w-0"].draining = False
    slots.by_name["w-0"].role = Role.DECODE
    assert losses(slots) == []


def test_an_aggregated_worker_does_both():
    slots = ready(Role.PREFILL, Role.DECODE, Role.AGGREGATED)
    assert [last_for(slots, slots.by_name[f"w-{n}"]) for n in range(3)] == [None, None, None]
    slots.by_name["w-2"].life.phase = Phase.DOWN
    workers = [slots.by_name[f"w-{n}"] for n in range(3)]
    assert [last_for(slots, worker) for worker in workers] == ["prefills", "decodes", None]


@pytest.mark.parametrize(
    ("lost", "serves"),
    [
        ((), True),
        (("w-0",), True),
        (("w-1",), True),
        (("w-0", "w-1"), False),
        (("dispatcher",), False),
        (("gateway-api",), False),
    ],
)
def test_a_node_serves_while_any_worker_is_behind_a_front(lost, serves):
    slots = ready(Role.PREFILL, Role.DECODE)
    for name in lost:
        slots.by_name[name].life.phase = Phase.BACKOFF
    assert can_serve(slots) is serves


def test_a_process_that_is_sick_serves_no_more():
    slots = ready(Role.AGGREGATED)
    slots.by_name["w-0"].sick = "it is stopped"
    assert not can_serve(slots)
    assert losses(slots)[0] == "no worker decodes"
