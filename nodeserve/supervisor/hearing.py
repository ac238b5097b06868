"""What is heard on the control channel: who may say it, and which event of the node it is."""

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    EngineReady,
    Event,
    NodeEmptied,
    ProcessReady,
    ProcessSick,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.lifecycle.slot import Slot
from nodeserve.wire import control


def may_say(identity: bytes, message: control.Message, *, dispatcher: int) -> bool:
    """Whether this peer may say this: a child speaks for itself, the dispatcher for routing.

    ``dispatcher`` is the generation of the present dispatcher; a fenced one has no say.
    """
    match message:
        case (
            control.WorkerServing()
            | control.WorkerDrained()
            | control.WorkerGivenUp()
            | control.GatewayGivenUp()
            | control.GatewayServing()
            | control.NodeDrained()
            | control.DispatcherStatus()
        ):
            return identity == str(dispatcher).encode()
        case (
            control.WorkerHello()
            | control.WorkerProgress()
            | control.WorkerReady()
            | control.WorkerHeartbeat()
            | control.ChildFailed()
            | control.DispatcherReady()
            | control.DispatcherHeartbeat()
        ):
            return identity == str(message.generation).encode()
        case _:
            return not identity.isdigit()


def event_of(message: control.Message) -> Event | None:
    """Return what a message means for the node's life; None for what it need not hear."""
    match message:
        case control.WorkerReady():
            return EngineReady(message)
        case control.DispatcherReady(generation=generation):
            return ProcessReady(Generation(generation))
        case control.WorkerServing(generation=generation):
            return WorkerRouted(Generation(generation))
        case control.WorkerDrained(generation=generation):
            return WorkerEmptied(Generation(generation))
        case (
            control.WorkerGivenUp(generation=generation, reason=reason)
            | control.GatewayGivenUp(generation=generation, reason=reason)
        ):
            return ProcessSick(Generation(generation), f"given up by the dispatcher: {reason}")
        case control.NodeDrained():
            return NodeEmptied()
        case _:
            return None


def has_missed_readiness(slot: Slot, message: control.Message) -> bool:
    """Whether a worker that beats has said that it is ready to somebody else than us."""
    return isinstance(message, control.WorkerHeartbeat) and slot.ready is None
