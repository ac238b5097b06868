"""All that a supervisor has and knows, as it goes from one program to the next."""

from dataclasses import dataclass, replace

from nodeserve.bus.channel import ControlServer
from nodeserve.config.node import NodeConfig
from nodeserve.lifecycle.node import NodeLife
from nodeserve.supervisor.changes import Changes
from nodeserve.supervisor.children import Children
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.handover import Handover
from nodeserve.supervisor.operator_desk import OperatorDesk
from nodeserve.supervisor.outbox import Outbox
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.tier_desk import TierDesk
from nodeserve.supervisor.tier_memory import KeptTierMemory, TierMemory
from nodeserve.wire.control import ChildFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """The parts of one supervisor that keep a state.

    Attributes:
        causes: What children have said of their end that is still to come, by generation.
        memory: The host tier's; None where there is no such tier.
        run_id: Which run of the node this is.
        started_s: When the node was started.
        num_reloads: How many programs supervised the node before this one.
    """

    config: NodeConfig
    runtime: RuntimeDirectory
    life: NodeLife
    server: ControlServer
    outbox: Outbox
    children: Children
    gateways: Gateways
    desk: OperatorDesk
    changes: Changes
    causes: dict[int, ChildFailed]
    tier_desk: TierDesk
    run_id: str
    started_s: float
    num_reloads: int
    memory: TierMemory | None = None

    def state(self, config: NodeConfig, asked_by: bytes | None) -> Handover:
        """Return what the next program needs; it is to run the node with ``config``."""
        return Handover(
            config=config,
            node=self.life.kept,
            children=self.children.kept,
            listeners=self.gateways.kept,
            control_fd=self.server.listening.fileno(),
            lock_fd=self.runtime.lock_fd,
            run_id=self.run_id,
            started_s=self.started_s,
            causes=list(self.causes.values()),
            promises=self.desk.promises,
            asked_by=asked_by,
            num_reloads=self.num_reloads + 1,
            before=self.config,
            rollout=self.changes.rollout,
            tier=self._kept_tier(),
        )

    def _kept_tier(self) -> KeptTierMemory | None:
        if self.memory is None:
            return None
        return replace(self.memory.kept, gone=self.tier_desk.gone)

    def take_up(self, kept: Handover) -> None:
        """Go on with what the program before this one left."""
        self.children.take_over(kept.children)
        self.causes.update((failed.generation, failed) for failed in kept.causes)
        self.desk.promises.extend(kept.promises)
        for slot in self.life.slots.values():
            if slot.attached and slot.name in self.gateways.names:
                self.gateways.begin_probing(slot.name, slot.generation)

    def is_settled(self) -> bool:
        """Whether nothing is on its way that the next program would not hear of."""
        running = [slot for slot in self.life.slots.values() if slot.running]
        return (
            not self.server.is_readable
            and not self.desk.is_answering
            and self.tier_desk.is_settled
            and self.outbox.is_empty
            and all(self.children.get(slot.generation) is not None for slot in running)
        )
