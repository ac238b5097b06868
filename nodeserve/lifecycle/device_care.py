"""What findings of devices mean for the workers on them, and for those that are left."""

from typing import Final

from nodeserve.lifecycle.fences import DeviceState
from nodeserve.lifecycle.messages import (
    Command,
    DeviceEvent,
    FindingsCleared,
    FindingsReported,
    TellDispatcher,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import AfterStop, Slot
from nodeserve.lifecycle.slots import Slots
from nodeserve.lifecycle.state import NodePhase
from nodeserve.lifecycle.wishes import Wishes
from nodeserve.wire.control import SetWorkerRole
from nodeserve.wire.device_report import Finding
from nodeserve.wire.kinds import ProcessKind, Role

SETTLED_S: Final = 60.0
"""A worker that began no longer ago is not restarted for a finding: what was found has most likely
ended the one before it."""

_DECODES: Final = (Role.DECODE, Role.AGGREGATED)


class DeviceCare:
    """Makes the workers what the findings ask for. Doing so once more changes nothing.

    Whoever calls it then starts what is wanted, down and not fenced.
    """

    def __init__(self, slots: Slots, state: DeviceState, wishes: Wishes) -> None:
        self._slots = slots
        self._state = state
        self._wishes = wishes

    def hear(self, event: DeviceEvent) -> None:
        """Take what is wrong, or what an operator says is well again; ``settle`` acts on it.

        Raises:
            RequestError: There was nothing to clear.
        """
        match event:
            case FindingsReported(findings=findings):
                self._state.report(findings)
            case FindingsCleared(meter=meter):
                self._state.clear(meter)

    @property
    def is_needed(self) -> bool:
        """Whether anything is wrong, or was when the workers were last looked at."""
        state = self._state
        return bool(state.findings or state.fences) or any(
            slot.fence or slot.spared or slot.role_before for slot in self._workers()
        )

    def settle(self, phase: NodePhase, now_s: float) -> list[Command]:
        """Fence, hold, release and restart workers, and have others stand in for them.

        A node that ends has other worries.
        """
        if phase not in (NodePhase.STARTING, NodePhase.READY):
            return []
        commands = self._restart(now_s)
        changed = self._mark(now_s)
        commands += self._stand_in()  # before anybody drains, so that there is a place to go to
        for slot in changed:
            if slot.fence is None:
                self._release(slot)
            else:
                commands += self._take_down(slot, now_s)
        return commands

    def _workers(self) -> list[Slot]:
        return self._slots.of_kind(ProcessKind.WORKER)

    # ------------------------------------------------------------------------------ fences

    def _mark(self, now_s: float) -> list[Slot]:
        """Note who must not run, and why; return those for whom that has changed."""
        before = {slot.name: slot.fence is not None for slot in self._workers()}
        held: dict[str, str] = {}
        for slot in sorted(self._workers(), key=lambda slot: slot.fence is None):
            self._hold(slot, held, now_s)
        for slot in self._workers():
            fence = self._state.fence_of(slot.plan.meters)
            slot.fence = held.get(slot.name) if fence is None else _why_fenced(fence)
        return [slot for slot in self._workers() if before[slot.name] != (slot.fence is not None)]

    def _hold(self, slot: Slot, held: dict[str, str], now_s: float) -> None:
        """Note in ``held`` a worker that is to be drained, unless nobody else would be left."""
        slot.spared = None
        finding = self._state.asking("drain", slot.plan.meters)
        if finding is None or self._state.fence_of(slot.plan.meters) is not None:
            return
        others = [
            other
            for other in self._workers()
            if other is not slot
            and other.name not in held
            and _is_able(other)
            and self._state.fence_of(other.plan.meters) is None
        ]
        if not others and _is_able(slot):
            slot.spared = f"GPU {finding.meter} has {finding.signal}"
        elif not others:
            return
        elif slot.fence is not None or self._state.take_turn(finding, now_s):
            held[slot.name] = f"GPU {finding.meter} has {finding.signal}, until that is over"

    def _take_down(self, slot: Slot, now_s: float) -> list[Command]:
        match slot.life.phase:
            case Phase.READY:
                return self._wishes.drain(slot, AfterStop.STAY_DOWN, now_s)
            case Phase.STARTING | Phase.BACKOFF | Phase.FAILED:
                return self._wishes.end(slot, now_s)
            case Phase.STOPPING | Phase.DOWN:
                return []

    def _release(self, slot: Slot) -> None:
        """Let a worker run again: at once where it is down, else when it has ended."""
        if slot.running and slot.wanted:
            slot.after_stop = AfterStop.START_AGAIN

    # ----------------------------------------------------------------------------- restarts

    def _restart(self, now_s: float) -> list[Command]:
        """Restart the workers for whose GPUs that is asked, once for each finding."""
        commands: list[Command] = []
        for finding in self._state.new_restarts():
            for slot in self._workers():
                if finding.meter in slot.plan.meters and _is_settled(slot, now_s):
                    commands += self._restart_for(finding, slot, now_s)
        return commands

    def _restart_for(self, finding: Finding, slot: Slot, now_s: float) -> list[Command]:
        if self._state.fence_of(slot.plan.meters) is not None:
            return []
        if not self._state.take_turn(finding, now_s):
            return []
        return self._wishes.drain(slot, AfterStop.START_AGAIN, now_s)

    # ------------------------------------------------------------------------------- roles

    def _stand_in(self) -> list[Command]:
        """Have a worker decode too where fences have left nobody who does, and only until then.

        Prefill workers need nobody to stand in for them: those who decode compute prompts too.
        """
        able = [slot for slot in self._workers() if slot.may_run and _is_able(slot)]
        own = [slot for slot in able if slot.role_before is None and slot.role in _DECODES]
        commands: list[Command] = []
        if any(slot.serves and not slot.draining for slot in own):
            for slot in self._workers():
                if slot.role_before is not None:
                    commands += self._use_for(slot, slot.role_before, before=None)
        fenced = [slot for slot in self._workers() if slot.fence is not None]
        lost = any(slot.role in _DECODES for slot in fenced)
        if lost and not any(slot.role in _DECODES for slot in able) and able:
            slot = next((slot for slot in able if slot.serves), able[0])
            commands += self._use_for(slot, Role.AGGREGATED, before=slot.role)
        return commands

    def _use_for(self, slot: Slot, role: Role, *, before: Role | None) -> list[Command]:
        slot.role, slot.role_before = role, before
        if not slot.attached:
            return []
        return [TellDispatcher(SetWorkerRole(generation=slot.generation, role=role))]


def _is_able(slot: Slot) -> bool:
    """Tell whether a worker serves, or will by itself, as far as its own life goes."""
    leaves = slot.draining and slot.after_stop is AfterStop.STAY_DOWN
    return slot.wanted and slot.life.phase is not Phase.FAILED and not leaves


def _is_settled(slot: Slot, now_s: float) -> bool:
    """Tell whether a worker has served for long enough to be restarted, and is not already."""
    return slot.serves and not slot.draining and now_s - slot.begun_s >= SETTLED_S


def _why_fenced(finding: Finding) -> str:
    clear = f"`nodeserve health clear {finding.meter or 'all'}` lifts it"
    whose = f"GPU {finding.meter}" if finding.meter else "the node"
    return f"{whose} has {finding.signal} ({finding.detail}); {clear}"
