"""The way from one set of processes to another: who leaves, who comes, who is started anew."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nodeserve.lifecycle.messages import DrainAsked, EndAsked, Replanned, RestartAsked
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import Slot, SlotPlan
from nodeserve.wire.kinds import ProcessKind

Step = Replanned | EndAsked | DrainAsked | RestartAsked


@dataclass(slots=True)
class Rollout:
    """What is still to be done, a step at a time; it survives the next reload.

    Who is started anew is so one after another, and the first one that does not come back ends
    it: a setting that no engine can start with shall not end all of them.

    Attributes:
        plans: The processes that the node is to have; empty when it has them.
        leaving: Processes that are not among them and have not been told so.
        restarts: Processes to start anew.
        additions_wait: Whether who comes needs what one that leaves has.
        has_begun: Whether the node knows ``plans``.
        under_way: Who is being started anew, and which generation it had.
        coming: Processes that it adds, until they are ready or have failed.
        halted: Who did not come back; until the next rollout.
        is_told: Whether somebody has heard of ``halted``.
    """

    plans: tuple[SlotPlan, ...] = ()
    leaving: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    additions_wait: bool = False
    has_begun: bool = False
    under_way: tuple[str, int] | None = None
    halted: str | None = None
    coming: list[str] = field(default_factory=list)
    is_told: bool = False

    def extend(
        self,
        plans: Iterable[SlotPlan],
        slots: Mapping[str, Slot],
        *,
        restarts: Iterable[str],
        additions_wait: bool,
    ) -> None:
        """Head for ``plans`` instead; what was to be started anew still is."""
        was_there = not self.plans
        self.plans = tuple(plans)
        planned = {plan.name for plan in self.plans}
        self.leaving = [name for name in slots if name not in planned]
        wanted = [*self.restarts, *restarts]
        self.restarts = [name for name in dict.fromkeys(wanted) if name in planned & set(slots)]
        self.additions_wait = additions_wait or (self.additions_wait and not was_there)
        self.has_begun, self.halted, self.is_told = False, None, False
        self.coming = [name for name in planned if name not in slots]

    def left(self, slots: Mapping[str, Slot]) -> list[str]:
        """Return the processes that have still to come, to leave or to start anew."""
        self.coming = [name for name in self.coming if not _has_come(slots.get(name))]
        planned = {plan.name for plan in self.plans}
        leaving = [
            name for name, slot in slots.items() if planned and name not in planned and slot.running
        ]
        under_way = [] if self.under_way is None else [self.under_way[0]]
        return list(dict.fromkeys([*leaving, *under_way, *self.restarts, *self.coming]))

    def next_step(self, slots: Mapping[str, Slot]) -> Step | None:
        """Return what the node is to be told now; ask until it is None, and after each event."""
        if self.plans and not self.has_begun:
            self.has_begun = True
            waits = self.additions_wait
            return Replanned(tuple(p for p in self.plans if not waits or p.name in slots))
        while self.leaving:
            if (slot := slots.get(self.leaving.pop(0))) is not None:
                return _end(slot)
        planned = {plan.name for plan in self.plans}
        if planned and not any(s.running for name, s in slots.items() if name not in planned):
            plans, self.plans = self.plans, ()
            return Replanned(plans)
        return self._restart_next(slots)

    def _restart_next(self, slots: Mapping[str, Slot]) -> Step | None:
        if self.under_way is not None and not self._is_over(*self.under_way, slots):
            return None
        self.under_way = None
        while self.restarts:
            slot = slots.get(self.restarts.pop(0))
            if slot is not None and slot.may_run:
                self.under_way = (slot.name, slot.generation)
                if slot.kind is ProcessKind.WORKER:
                    return RestartAsked(slot.name, immediately=False)
                return EndAsked(slot.name, start_again=True)
        return None

    def _is_over(self, name: str, generation: int, slots: Mapping[str, Slot]) -> bool:
        slot = slots.get(name)
        if slot is None or not slot.may_run:  # somebody has asked for something else meanwhile
            return True
        if slot.life.phase in (Phase.BACKOFF, Phase.FAILED):
            self.halted = name
            self.restarts.clear()
            return True
        return slot.life.phase is Phase.READY and slot.generation != generation


def _has_come(slot: Slot | None) -> bool:
    if slot is None:
        return False
    has_settled = slot.life.phase in (Phase.READY, Phase.BACKOFF, Phase.FAILED)
    return has_settled or slot.fence is not None


def _end(slot: Slot) -> Step:
    if slot.kind is ProcessKind.WORKER:
        return DrainAsked(slot.name, force=True)
    return EndAsked(slot.name, start_again=False)
