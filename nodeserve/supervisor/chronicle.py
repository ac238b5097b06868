"""The daemon's log of how the node and its processes change, one line for each change."""

import logging
from dataclasses import dataclass
from typing import Final

from nodeserve.ids import Generation
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import NO_GENERATION, AfterStop, Slot
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.report import first_line
from nodeserve.wire.device_report import Finding
from nodeserve.wire.kinds import ProcessKind, Role

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a slot was like when it was last looked at."""

    phase: Phase
    generation: Generation
    draining: bool
    role: Role | None
    is_fenced: bool


_NEW: Final = _Seen(Phase.DOWN, NO_GENERATION, draining=False, role=None, is_fenced=False)


class Chronicle:
    """Compares the node with what it was. Call ``look`` after every event."""

    def __init__(self, life: NodeLife) -> None:
        self._life = life
        self._seen = {slot.name: _see(slot) for slot in life.slots.values()}
        self._standing: tuple[str, str | None] | None = None
        self._findings = _of(life)

    def look(self, *, now_s: float) -> None:
        """Log what has changed since the last time."""
        self._look_at_devices()
        for slot in self._life.slots.values():
            after = _see(slot)
            before = self._seen.get(slot.name, _NEW)
            if after != before:
                self._seen[slot.name] = after
                _tell(slot, before, now_s)
        if self._life.phase is not NodePhase.READY:
            return
        stood, self._standing = self._standing, (self._life.state, self._life.detail)
        state, detail = self._standing
        if stood == self._standing:
            return
        if detail is not None:
            _log.warning("node_%s detail=%r", state, detail)
        elif stood is not None:
            _log.info("node_ready_again")

    def _look_at_devices(self) -> None:
        before, self._findings = self._findings, _of(self._life)
        for key, finding in self._findings.items():
            if key not in before:
                level = logging.INFO if finding.action == "none" else logging.WARNING
                words = "device_finding meter=%s signal=%s severity=%s action=%s detail=%r"
                asked = (finding.meter, finding.signal, finding.severity, finding.action)
                _log.log(level, words, *asked, finding.detail)
        for meter, signal, *_ in before.keys() - self._findings.keys():
            if not any(key[:2] == (meter, signal) for key in self._findings):
                _log.info("device_finding_over meter=%s signal=%s", meter, signal)


def _of(life: NodeLife) -> dict[tuple[str, str, str, float], Finding]:
    """Return the findings by what makes one another than before."""
    found = life.kept.devices.all_findings
    return {(f.meter, f.signal, f.action, f.since_unix_s): f for f in found}


def _see(slot: Slot) -> _Seen:
    drains = slot.draining and slot.life.phase is Phase.READY
    is_fenced = slot.fence is not None
    return _Seen(slot.life.phase, slot.generation, drains, slot.role, is_fenced)


def _tell_use(slot: Slot, before: _Seen) -> None:
    """Log what a worker is used for, and whether it may run."""
    if slot.role is not before.role and before.role is not None:
        _log.info("worker_role name=%s role=%s before=%s", slot.name, slot.role, before.role)
        if slot.role_before is not None:
            _log.warning("worker_stands_in name=%s: nobody else %ss", slot.name, Role.DECODE)
    if slot.fence is not None and not before.is_fenced:
        _log.warning("worker_fenced name=%s cause=%r", slot.name, slot.fence)
    elif before.is_fenced and slot.fence is None:
        _log.info("worker_released name=%s", slot.name)
    if _see(slot).draining and not before.draining:
        then = "restart" if slot.after_stop is AfterStop.START_AGAIN else "stay_down"
        _log.info("worker_draining name=%s then=%s", slot.name, then)


def _tell(slot: Slot, before: _Seen, now_s: float) -> None:
    _tell_use(slot, before)
    phase = slot.life.phase
    if phase is before.phase and slot.generation == before.generation:
        return
    match phase:
        case Phase.STARTING if slot.restarts:
            _log.info("process_restarting name=%s generation=%d", slot.name, slot.generation)
        case Phase.READY:
            words = "process_ready name=%s generation=%d restarts=%d"
            _log.info(words, slot.name, slot.generation, slot.restarts)
        case Phase.BACKOFF:
            wait_s = (slot.life.wake_at_s or now_s) - now_s
            _log.info("process_backoff name=%s restart_in_s=%.1f", slot.name, wait_s)
        case Phase.FAILED:
            words = "process_failed name=%s cause=%r: `nodeserve restart %s` tries again"
            _log.error(words, slot.name, first_line(slot.detail), slot.name)
        case Phase.DOWN if slot.kind is ProcessKind.WORKER and not slot.wanted:
            _log.info("worker_down name=%s: `nodeserve restart` brings it back", slot.name)
        case Phase.STARTING | Phase.STOPPING | Phase.DOWN:
            pass
