"""What the connector's two halves say to each other; pickled by vLLM between its processes."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from nodeserve.engine.vllm.handoff import Handoff, LoadPart, PoolDescription


@dataclass(frozen=True)
class PoolHandshake(KVConnectorHandshakeMetadata):
    """Worker to scheduler, once: where this rank's KV pool lies.

    ``undivided`` says by what its pages cannot be divided, as ``kv_memory.undivided`` does.
    """

    pool: PoolDescription
    undivided: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """Pull the handoff's tokens into the blocks of ``parts``, one part per KV cache group.

    ``parked`` is whether the request waits for it across steps; else this step needs it.
    """

    request_id: str
    handoff: Handoff
    parts: list[LoadPart]
    parked: bool


@dataclass
class LoadMetadata(KVConnectorMetadata):
    """Scheduler to workers, each step: what to load."""

    loads: list[Load] = field(default_factory=list)


@dataclass
class LoadReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, each step: what was loaded. Only rank 0 counts the time."""

    num_bytes: int = 0
    load_ms: float = 0.0
    unparked_failures: int = 0

    def aggregate(self, other: "LoadReport") -> "LoadReport":
        """Return the report of both: bytes add up, a load fails once for all ranks."""
        return LoadReport(
            num_bytes=self.num_bytes + other.num_bytes,
            load_ms=self.load_ms + other.load_ms,
            unparked_failures=max(self.unparked_failures, other.unparked_failures),
        )
