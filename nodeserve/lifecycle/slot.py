"""One place in the node that a process fills, incarnation after incarnation."""

import enum
from dataclasses import dataclass, field
from typing import Final

from nodeserve.errors import RequestError
from nodeserve.ids import Generation
from nodeserve.lifecycle.process import Phase, ProcessLife
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.kinds import HANDOFF, ProcessKind, Role

NO_GENERATION: Final = Generation(0)
"""What a slot holds before its first process; generations count from 1."""


class AfterStop(enum.Enum):
    """What follows when a process that was asked to stop is gone."""

    STAY_DOWN = "stay down"
    START_AGAIN = "start again"


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What the node is made of: one process with its name, kind and the fork server it needs.

    ``forkserver`` names the slot that must be ready before this one can start; None for the
    fork servers themselves. ``meters`` name the GPUs of a worker.
    """

    name: str
    kind: ProcessKind
    forkserver: str | None = None
    role: Role | None = None
    meters: tuple[str, ...] = ()


@dataclass(slots=True)
class Slot:
    """The present incarnation of one planned process.

    Attributes:
        wanted: Whether an operator, or the configuration, wants it to run.
        fence: Why it must not run whoever wants it: what is wrong with a GPU; None where it may.
        spared: What it would be drained for if it were not the last worker.
        role_before: What it is used for when it does not stand in for one that is fenced.
        begun_s: When its present incarnation was started.
    """

    plan: SlotPlan
    life: ProcessLife = field(default_factory=ProcessLife)
    generation: Generation = NO_GENERATION
    role: Role | None = None
    wanted: bool = True
    attached: bool = False
    draining: bool = False
    after_stop: AfterStop = AfterStop.STAY_DOWN
    ready: WorkerReady | None = None
    detail: str | None = None
    sick: str | None = None
    drain_deadline_s: float | None = None
    incarnations: int = 0
    fence: str | None = None
    spared: str | None = None
    role_before: Role | None = None
    begun_s: float = 0.0

    @property
    def name(self) -> str:
        """The slot's name."""
        return self.plan.name

    @property
    def kind(self) -> ProcessKind:
        """The kind of process that fills it."""
        return self.plan.kind

    @property
    def restarts(self) -> int:
        """How often it was started again, whatever had ended it."""
        return max(0, self.incarnations - 1)

    @property
    def may_run(self) -> bool:
        """Whether it is wanted and nothing is in the way."""
        return self.wanted and self.fence is None

    @property
    def serves(self) -> bool:
        """Whether the process does its work."""
        return self.life.phase is Phase.READY and self.sick is None

    @property
    def running(self) -> bool:
        """Whether a process exists, so that an exit is still to come."""
        return self.life.phase in (Phase.STARTING, Phase.READY, Phase.STOPPING)

    def begin(self, generation: Generation) -> None:
        """Take note that a new incarnation is being started."""
        self.generation = generation
        self.incarnations += 1
        self.attached = self.draining = False
        self.ready = self.detail = self.sick = self.drain_deadline_s = None
        self.after_stop = AfterStop.STAY_DOWN

    def require_role(self, role: Role) -> None:
        """Refuse a role for which the engine lacks the handoff, or may lack it.

        Raises:
            RequestError: With what to do instead.
        """
        if role is Role.AGGREGATED:
            return
        if self.ready is None:
            text = f"worker {self.name} is {self.state()}; wait until it is ready, or restart it"
            raise RequestError(text)
        if HANDOFF not in self.ready.features:
            text = (
                f"worker {self.name} cannot {role}: its engine has no way to hand KV over in this "
                "release; leave it aggregated"
            )
            raise RequestError(text)

    def end(self, detail: str | None) -> None:
        """Take note that the incarnation is gone; ``detail`` is for people."""
        self.attached = self.draining = False
        self.drain_deadline_s = None
        self.detail = detail

    def state(self) -> str:
        """The phase, or what it comes to: what `status` shows."""
        if self.sick is not None and self.running:
            return str(Phase.STOPPING)
        if self.fence is not None and not self.running:
            return "fenced"
        return "draining" if self.draining and self.running else str(self.life.phase)
