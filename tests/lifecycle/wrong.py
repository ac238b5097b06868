"""Findings, and a node of two prefill and two decode workers on GPUs that may have them."""

from nodeserve.lifecycle.messages import FindingsCleared, FindingsReported, NodeStarted
from nodeserve.lifecycle.messages import ProcessReady as Ready
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.wire.device_report import Finding
from nodeserve.wire.kinds import ProcessKind, Role
from tests.lifecycle.living import Node

WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
PLANS = [
    SlotPlan("forkserver", ProcessKind.FORKSERVER),
    SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
    *(
        SlotPlan(name, ProcessKind.WORKER, "forkserver", Role(name[:-2]), (f"g{place}",))
        for place, name in enumerate(WORKERS)
    ),
    SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver"),
]


def finding(meter, action, *, signal="xid_1", since=0.0):
    severity = "fatal" if action.startswith("fence") else "error"
    return Finding(
        meter=meter,
        signal=signal,
        severity=severity,
        action=action,
        detail="it is so",
        provenance="a test",
        since_unix_s=since,
    )


class Ward(Node):
    """A node whose GPUs fall ill and are cured."""

    def __init__(self, plans=PLANS):
        super().__init__(plans)
        self.workers = [plan.name for plan in plans if plan.kind is ProcessKind.WORKER]

    def report(self, *findings, at_s=None):
        return self.tell(FindingsReported(findings), at_s)

    def cleared(self, meter=None):
        return self.tell(FindingsCleared(meter))

    def begin(self):
        self.tell(NodeStarted())
        self.tell(Ready(self.generation("forkserver")))
        self.tell(Ready(self.generation("dispatcher")))

    def serve(self, name):
        self.engine_ready(name)
        return self.routed(name)

    def up(self):
        self.begin()
        for name in self.workers:
            self.serve(name)
        for name, slot in self.life.slots.items():
            if slot.kind is ProcessKind.GATEWAY:
                self.tell(Ready(self.generation(name)))
        assert self.life.state == "ready"
        self.now_s = 1000.0
        return self

    def state_of(self, name):
        return self.life.slots[name].state()
