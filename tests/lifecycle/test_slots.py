"""Claims about a node's places and their generations."""

import pytest

from nodeserve.errors import CapacityError, InvariantError, RequestError
from nodeserve.ids import MAX_GENERATION, Generation
from nodeserve.lifecycle import process
from nodeserve.lifecycle.messages import SpawnProcess
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.lifecycle.slots import Slots
from nodeserve.wire.kinds import ProcessKind

PLANS = [
    SlotPlan("forkserver", ProcessKind.FORKSERVER),
    SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
]


def test_no_two_spawns_share_a_generation() -> None:
    slots = Slots.planned(PLANS)
    spawns = []
    for slot in slots.by_name.values():
        spawns += slots.apply(slot, process.StartRequested(), 0.0)
    assert spawns == [
        SpawnProcess("forkserver", Generation(1)),
        SpawnProcess("dispatcher", Generation(2)),
    ]
    assert slots.of_generation(2) is slots.by_name["dispatcher"]
    slots.check()


def test_generations_end_where_the_wire_ends() -> None:
    slots = Slots.planned(PLANS)
    slots.last_generation = MAX_GENERATION
    with pytest.raises(CapacityError, match="65535"):
        slots.apply(slots.by_name["forkserver"], process.StartRequested(), 0.0)


def test_a_slot_without_a_process_is_of_no_generation() -> None:
    assert Slots.planned(PLANS).of_generation(0) is None


def test_a_shared_generation_is_found() -> None:
    slots = Slots.planned(PLANS)
    for slot in slots.by_name.values():
        slot.begin(Generation(7))
    with pytest.raises(InvariantError, match="7, 7"):
        slots.check()


def test_what_a_fork_server_must_make_waits_for_it() -> None:
    slots = Slots.planned(PLANS)
    assert not slots.can_fork(slots.by_name["dispatcher"])
    slots.by_name["forkserver"].life.phase = Phase.READY
    assert slots.can_fork(slots.by_name["dispatcher"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gateway-api", "gateway-api is no worker, `nodeserve restart gateway-api` renews it"),
        ("supervisor", "the supervisor is no worker, `nodeserve reload` renews it"),
        ("decode-9", "worker decode-9 does not exist"),
    ],
)
def test_who_asks_for_a_worker_that_is_none_is_told_what_to_do(name: str, says: str) -> None:
    gateway = SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver")
    slots = Slots.planned([*PLANS, gateway, SlotPlan("decode-0", ProcessKind.WORKER)])
    with pytest.raises(RequestError, match=f"^{says}; the workers of this node are decode-0$"):
        slots.worker(name)


def test_who_would_restart_the_supervisor_is_told_to_reload() -> None:
    with pytest.raises(RequestError, match="`nodeserve reload` renews it, and ends nothing else"):
        Slots.planned(PLANS).named("supervisor")
