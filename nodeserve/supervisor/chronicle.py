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
from nodeserve.wire.kinds import ProcessKind, Role

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a slot was like when it was last looked at."""

    phase: Phase
    generation: Generation
    draining: bool
    role: Role | None


_NEW: Final = _Seen(Phase.DOWN, NO_GENERATION, draining=False, role=None)


class Chronicle:
    """Compares the node with what it was. Call ``look`` after every event."""

    def __init__(self, life: NodeLife) -> None:
        self._life = life
        self._seen = {slot.name: _see(slot) for slot in life.slots.values()}
        self._standing: tuple[str, str | None] | None = None

    def look(self, *, now_s: float) -> None:
        """Log what has changed since the last time."""
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


def _see(slot: Slot) -> _Seen:
    drains = slot.draining and slot.life.phase is Phase.READY
    return _Seen(slot.life.phase, slot.generation, drains, slot.role)


def _tell(slot: Slot, before: _Seen, now_s: float) -> None:
    if slot.role is not before.role and before.role is not None:
        _log.info("worker_role name=%s role=%s before=%s", slot.name, slot.role, before.role)
    if _see(slot).draining and not before.draining:
        then = "restart" if slot.after_stop is AfterStop.START_AGAIN else "stay_down"
        _log.info("worker_draining name=%s then=%s", slot.name, then)
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
