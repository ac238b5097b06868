"""All that a node's life remembers, in one piece that another supervisor can go on with."""

import enum
from dataclasses import dataclass, field

from nodeserve.lifecycle.fences import DeviceState
from nodeserve.lifecycle.messages import ExitNode
from nodeserve.lifecycle.slots import Slots


class NodePhase(enum.StrEnum):
    """What the node as a whole is doing; `status` shows READY with a loss as ``degraded``."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(slots=True)
class NodeState:
    """What the node is made of and what it is doing.

    Travels from one release to the next: new fields have defaults.
    """

    slots: Slots
    phase: NodePhase = NodePhase.STARTING
    drain_deadline_s: float | None = None
    settled_at_s: float | None = None
    exit: ExitNode = field(default_factory=lambda: ExitNode(0))
    devices: DeviceState = field(default_factory=DeviceState)
