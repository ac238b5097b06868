"""What the connector's two halves say to each other in a step, in the form that vLLM carries."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from nodeserve.engine.vllm.connector_messages import LoadMetadata, LoadReport
from nodeserve.engine.vllm.host_tier_orders import TierReport, TierStep


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Scheduler to workers, each step: handoffs to pull, and the host tier's part."""

    handoffs: LoadMetadata
    tier: TierStep


@dataclass(frozen=True)
class StepReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, each step."""

    handoffs: LoadReport = field(default_factory=LoadReport)
    tier: TierReport = field(default_factory=TierReport)

    def aggregate(self, other: "StepReport") -> "StepReport":
        """Return the report of both."""
        return StepReport(
            handoffs=self.handoffs.aggregate(other.handoffs),
            tier=self.tier.aggregate(other.tier),
        )
