import os
from dataclasses import fields

import msgspec
import pytest

from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.lifecycle.fences import DeviceState
from nodeserve.lifecycle.messages import ExitNode
from nodeserve.lifecycle.process import Phase, ProcessLife
from nodeserve.lifecycle.restart import RestartHistory
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.slot import AfterStop, Slot, SlotPlan
from nodeserve.lifecycle.slots import Slots
from nodeserve.lifecycle.state import NodePhase, NodeState
from nodeserve.supervisor import handover
from nodeserve.supervisor.children import Kept, KeptChild, KeptForkServer
from nodeserve.supervisor.gateways import KeptListener
from nodeserve.supervisor.handover import Handover, Rehearse, TakeOver
from nodeserve.supervisor.operator_desk import KeptPromise
from nodeserve.wire.control import ChildFailed, WireFields, WorkerReady
from nodeserve.wire.device_report import Finding
from nodeserve.wire.kinds import ProcessKind, Role

FORKSERVER = ProcessKind.FORKSERVER
READY = WorkerReady(
    name="decode-0",
    generation=4,
    fields=WireFields(request=("a",), outputs=("b",), output=("c",), vllm_version="0.32.0"),
    ready=b"\x80",
    block_size=16,
    num_gpu_blocks=9,
    kv_block_bytes=1,
    max_model_len=64,
    features=("resume",),
)
FULL_SLOT = Slot(
    plan=SlotPlan("decode-0", ProcessKind.WORKER, "forkserver", Role.DECODE, ("GPU-a",)),
    life=ProcessLife(RestartHistory(place=3, deaths_s=[1.5, 2.5]), Phase.STOPPING, 17.5),
    generation=Generation(4),
    incarnations=7,
    role=Role.PREFILL,
    wanted=False,
    attached=True,
    draining=True,
    after_stop=AfterStop.START_AGAIN,
    ready=READY,
    detail="why",
    sick="so",
    drain_deadline_s=99.5,
    fence="GPU-a is lost",
    spared="GPU-a is hot",
    role_before=Role.DECODE,
    begun_s=3.5,
)
LOST = Finding(
    meter="GPU-a",
    signal="gpu_lost",
    severity="fatal",
    action="fence",
    detail="it is lost",
    provenance="a test",
    since_unix_s=2.5,
)
DEVICES = DeviceState(
    (LOST,), {"GPU-a": LOST}, {"GPU-b x": 1.5}, {"GPU-c y": 2.0}, {"GPU-c": [1.0]}
)


def state(**changes):
    given = {
        "config": NodeConfig(
            model="/m",
            served_model_names=("m",),
            runtime_dir="/run/d",
            listeners=(Listener(name="api", socket="/run/a", gateway=GatewayKind.RUST),),
            workers=(Worker(name="decode-0", role=Role.DECODE, args={"x": [1, None, {"y": 2.5}]}),),
            speedup=float("inf"),
        ),
        "node": NodeState(
            slots=Slots({"forkserver": Slot(SlotPlan("f", FORKSERVER)), "decode-0": FULL_SLOT}, 9),
            phase=NodePhase.READY,
            drain_deadline_s=12.5,
            settled_at_s=13.5,
            exit=ExitNode(1, "because"),
            devices=DEVICES,
        ),
        "children": Kept(
            [KeptChild("decode-0", 4, 4711, 3.5, 100)], [KeptForkServer("forkserver", 8, True)]
        ),
        "listeners": [KeptListener("api", (5, 6), "/run/a"), KeptListener("tcp", (7,), None)],
        "control_fd": 3,
        "lock_fd": 4,
        "started_s": 0.25,
        "causes": [ChildFailed(generation=4, cause="no", retryable=False)],
        "promises": [KeptPromise("decode-0", 3, Phase.READY, b"c1")],
        "asked_by": b"c2",
        "num_reloads": 2,
        "asked_again": True,
        "before": NodeConfig(
            model="/m", served_model_names=(), runtime_dir="/run/d", listeners=(), workers=()
        ),
        "rollout": Rollout(
            plans=(FULL_SLOT.plan,),
            leaving=["decode-1"],
            restarts=["decode-0"],
            additions_wait=True,
            has_begun=True,
            under_way=("prefill-0", 3),
            halted="prefill-1",
        ),
    }
    return Handover(**given | changes)


def test_all_that_is_known_arrives_and_can_be_read_twice():
    fd = handover.pack(state())
    assert handover.unpack(fd) == handover.unpack(fd) == state()
    assert not os.get_inheritable(fd)
    os.close(fd)


def same_fields(one, other):
    return [f.name for f in fields(one) if getattr(one, f.name) == getattr(other, f.name)]


def test_the_state_of_these_tests_has_no_field_left_at_its_default():
    node = state().node
    assert same_fields(node, NodeState(node.slots)) == ["slots"]
    assert same_fields(DEVICES, DeviceState()) == []
    assert same_fields(FULL_SLOT, Slot(FULL_SLOT.plan)) == ["plan"]
    assert same_fields(FULL_SLOT.life, ProcessLife()) == []
    assert same_fields(FULL_SLOT.life.history, RestartHistory()) == ["policy"]


def test_every_fd_is_named():
    assert sorted(state().fds()) == [3, 4, 5, 6, 7, 8]


def test_a_release_that_knows_more_and_one_that_knows_less_understand_each_other():
    known = msgspec.msgpack.decode(msgspec.msgpack.encode(state()))
    known["of_a_later_release"] = 1
    known["node"]["slots"]["by_name"]["decode-0"]["of_a_later_release"] = {"x": 1}
    for name in (
        "causes",
        "promises",
        "asked_by",
        "num_reloads",
        "asked_again",
        "before",
        "rollout",
    ):
        del known[name]
    fd = os.memfd_create("state")
    os.write(fd, msgspec.msgpack.encode(known))
    assert handover.unpack(fd) == Handover(
        **{
            name: getattr(state(), name)
            for name in ("config", "node", "children", "listeners", "control_fd", "lock_fd")
        },
        started_s=0.25,
    )
    os.close(fd)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\xff" * 50])
def test_a_state_that_cannot_be_read_is_refused(data):
    fd = os.memfd_create("state")
    os.write(fd, data)
    with pytest.raises(PeerError, match="restart the daemon"):
        handover.unpack(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("take-over 7", TakeOver(7)),
        (handover.rehearsal_variable(7, 8), Rehearse(7, 8)),
        ("", None),
        (None, None),
    ],
)
def test_the_errand_is_read_once(value, expected):
    environ = {"A": "b"} | ({} if value is None else {handover.VARIABLE: value})
    assert handover.errand(environ) == expected
    assert environ == {"A": "b"}
