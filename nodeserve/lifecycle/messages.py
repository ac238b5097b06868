"""Events into the node's life and commands out of it."""

from dataclasses import dataclass

from nodeserve.ids import Generation
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.wire.control import (
    AttachGateway,
    AttachWorker,
    DetachGateway,
    DetachWorker,
    DrainNode,
    DrainWorker,
    SetWorkerRole,
    WorkerReady,
)
from nodeserve.wire.device_report import Finding
from nodeserve.wire.kinds import Role


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """The daemon is set up and wants its processes."""


@dataclass(frozen=True, slots=True)
class ProcessReady:
    """A fork server is loaded, the dispatcher is bound, or a gateway answers HTTP."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class EngineReady:
    """A worker's engine takes requests; the dispatcher does not know yet."""

    ready: WorkerReady


@dataclass(frozen=True, slots=True)
class WorkerRouted:
    """The dispatcher sends requests to a worker."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class WorkerEmptied:
    """A draining worker has nothing left to do."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class NodeEmptied:
    """A draining node has no request left."""


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """A process is gone; ``cause`` is one sentence for people."""

    generation: Generation
    cause: str
    retryable: bool
    exit_code: int


@dataclass(frozen=True, slots=True)
class ProcessSick:
    """A process lives but is of no use: it is stopped, or does not answer, read or get on."""

    generation: Generation
    cause: str


@dataclass(frozen=True, slots=True)
class ProcessHeld:
    """A killed process does not end: the kernel holds it."""

    generation: Generation
    cause: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the node to end: the first time it drains, the second it stops at once."""


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """An operator wants a worker to finish its requests and stay down.

    With ``force`` also where nobody is left to do what it does.
    """

    worker: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """An operator wants a process's next incarnation, when it has finished or at once."""

    process: str
    immediately: bool


@dataclass(frozen=True, slots=True)
class EndAsked:
    """A process that is no worker is to end in its own time and, maybe, to start again."""

    name: str
    start_again: bool


@dataclass(frozen=True, slots=True)
class Replanned:
    """The node is to have these processes: new ones start, others go when they are down."""

    plans: tuple[SlotPlan, ...]


@dataclass(frozen=True, slots=True)
class RoleAsked:
    """An operator wants a worker, with ``force`` even the last of its role, to have another."""

    worker: str
    role: Role
    force: bool = False


@dataclass(frozen=True, slots=True)
class FindingsReported:
    """The monitor's whole account of what is wrong with the devices."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class FindingsCleared:
    """An operator says that all is well with a device again; with None, with all of them."""

    meter: str | None


@dataclass(frozen=True, slots=True)
class TimeElapsed:
    """The time in ``NodeLife.wake_at_s`` has come."""


Wish = DrainAsked | RestartAsked | RoleAsked | EndAsked | Replanned
"""What an operator, or a new configuration, wants of the processes."""

DeviceEvent = FindingsReported | FindingsCleared
"""What is said of the node's GPUs."""

ProcessEvent = (
    NodeStarted
    | ProcessReady
    | EngineReady
    | WorkerRouted
    | WorkerEmptied
    | NodeEmptied
    | ProcessExited
    | ProcessSick
    | ProcessHeld
    | StopAsked
    | Wish
    | TimeElapsed
)


Event = ProcessEvent | DeviceEvent


@dataclass(frozen=True, slots=True)
class SpawnProcess:
    """Start a slot's next incarnation."""

    name: str
    generation: Generation


@dataclass(frozen=True, slots=True)
class TerminateProcess:
    """Send SIGTERM to an incarnation."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class KillProcess:
    """Send SIGKILL to an incarnation."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class TellDispatcher:
    """Send a control message to the dispatcher."""

    message: (
        AttachWorker
        | DetachWorker
        | SetWorkerRole
        | DrainWorker
        | AttachGateway
        | DetachGateway
        | DrainNode
    )


@dataclass(frozen=True, slots=True)
class ConnectGateway:
    """Tell the dispatcher a gateway's addresses and begin to probe the gateway."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """The whole node serves: tell the operator, once."""


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Take no new connections: the node drains."""


@dataclass(frozen=True, slots=True)
class ExitNode:
    """Nothing runs any more: leave with ``exit_code`` and, if it failed, say why."""

    exit_code: int
    reason: str | None = None


Command = (
    SpawnProcess
    | TerminateProcess
    | KillProcess
    | TellDispatcher
    | ConnectGateway
    | AnnounceReady
    | StopAccepting
    | ExitNode
)
