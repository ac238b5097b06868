"""What is heard on the control channel: who may say it, and which event of the node it is."""

from collections.abc import Mapping
from typing import Final, get_args

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
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import Slot
from nodeserve.supervisor.plan import BLOCK_MANAGER, DISPATCHER
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported, MonitorHeartbeat, MonitorReady
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.kv_control import (
    BlockManagerHeartbeat,
    BlockManagerReady,
    KvDone,
    KvTierStatus,
)
from nodeserve.wire.ledger_control import LedgerHeartbeat, LedgerReady

Beat = (
    control.WorkerHello
    | control.WorkerHeartbeat
    | control.DispatcherHeartbeat
    | BlockManagerHeartbeat
    | LedgerHeartbeat
    | MonitorHeartbeat
)
BEATS: Final = get_args(Beat)
"""By these a process says that it goes on."""


def may_say(identity: bytes, message: control.Message, slots: Mapping[str, Slot]) -> bool:
    """Whether this peer may say this: a child speaks for itself, the dispatcher for routing.

    ``slots`` say which dispatcher and block manager are the present ones; a fenced one has no say.
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
            return identity == _identity_of(slots.get(DISPATCHER))
        case KvTierStatus() | KvDone():
            return identity == _identity_of(slots.get(BLOCK_MANAGER))
        case (
            control.WorkerHello()
            | control.WorkerProgress()
            | control.WorkerReady()
            | control.WorkerHeartbeat()
            | control.ChildFailed()
            | control.DispatcherReady()
            | control.DispatcherHeartbeat()
            | BlockManagerReady()
            | BlockManagerHeartbeat()
            | LedgerReady()
            | LedgerHeartbeat()
            | MonitorReady()
            | MonitorHeartbeat()
        ):
            return identity == str(message.generation).encode()
        case DeviceReported(generation=generation):
            monitors = [slot for slot in slots.values() if slot.kind is ProcessKind.MONITOR]
            is_present = all(slot.generation == generation for slot in monitors)
            return is_present and identity == str(generation).encode()
        case _:
            return not identity.isdigit()


def _identity_of(slot: Slot | None) -> bytes | None:
    return None if slot is None else str(slot.generation).encode()


def event_of(message: control.Message) -> Event | None:
    """Return what a message means for the node's life; None for what it need not hear."""
    match message:
        case control.WorkerReady():
            return EngineReady(message)
        case (
            control.DispatcherReady(generation=generation)
            | BlockManagerReady(generation=generation)
            | LedgerReady(generation=generation)
            | MonitorReady(generation=generation)
        ):
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


def beaten(slot: Slot, message: Beat) -> bool:
    """Take note of a beat; return whether its process has said that it is ready, but not to us."""
    if isinstance(message, LedgerHeartbeat):
        slot.detail = message.problem
    if isinstance(message, BlockManagerHeartbeat | LedgerHeartbeat | MonitorHeartbeat):
        return slot.life.phase is Phase.STARTING
    return isinstance(message, control.WorkerHeartbeat) and slot.ready is None
