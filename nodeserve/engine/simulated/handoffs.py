"""Both ends of a handoff inside one simulated engine: leases granted, blocks pulled.

Nothing is copied: a pull takes the time that the performance model says and always succeeds.
A handoff that makes no sense is not pulled; its prompt is computed here.
"""

import heapq
from typing import Any, Final

from nodeserve.engine.simulated.kv_blocks import KvBlocks
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.errors import InvariantError
from nodeserve.ids import LeaseId
from nodeserve.kv.lease import (
    Command,
    HandoffOffered,
    LeaseBook,
    LeaseReleased,
    Phase,
    PinBlocks,
    PublishSlot,
    TimeElapsed,
    UnpinBlocks,
)

SIMULATED: Final = "simulated"
"""The transport that copies nothing."""

PROBE_BYTES: Final = 64 << 20


class Handoffs:
    """The handoffs that one engine has granted, and those that it is pulling."""

    def __init__(self, limits: Limits, kv: KvBlocks) -> None:
        self._limits = limits
        self._kv = kv
        self._leases = LeaseBook(ttl_s=limits.lease_ttl_s, num_slots=limits.lease_slots)
        self._loading: list[tuple[float, int, Sequence]] = []
        self._loads = 0
        self._load_failures = 0
        self._load_bytes = 0
        self._load_s = 0.0

    @property
    def num_leases(self) -> int:
        """Handoffs whose blocks are pinned."""
        return self._leases.num_granted

    def holds(self, lease_id: int) -> bool:
        """Tell whether a lease is granted and has not ended."""
        return self._leases.phase(LeaseId(lease_id)) is Phase.GRANTED

    @property
    def loading(self) -> list[Sequence]:
        """Requests whose pull runs beside the steps."""
        return [sequence for _, _, sequence in self._loading if sequence.is_live]

    @property
    def next_load_s(self) -> float | None:
        """When the next pull ends, if one runs."""
        return self._loading[0][0] if self._loading else None

    def offer(self, sequence: Sequence, now_s: float) -> dict[str, Any]:
        """Pin a finished prefill's blocks and return its ``kv_transfer_params``."""
        num_tokens = len(sequence.prompt)
        blocks = tuple(sequence.blocks[: self._limits.num_blocks_for(num_tokens)])
        lease_id = self._carry_out(self._leases.handle(HandoffOffered(blocks), now_s=now_s))
        return {
            "do_remote_prefill": True,
            "engine": self._limits.generation,
            "lease_id": lease_id,
            "num_tokens": num_tokens,
            "num_bytes": len(blocks) * self._limits.block_bytes,
        }

    def release(self, lease_ids: list[int], now_s: float) -> None:
        """Unpin the blocks of leases; those that have ended are ignored.

        Raises:
            InvalidTransitionError: A lease was never granted.
        """
        for lease_id in lease_ids:
            self._carry_out(self._leases.handle(LeaseReleased(LeaseId(lease_id)), now_s=now_s))

    def expire(self, now_s: float) -> None:
        """Unpin the blocks of leases that nobody released in time."""
        if self._leases.num_granted:
            self._carry_out(self._leases.handle(TimeElapsed(), now_s=now_s))

    def refuse(self) -> None:
        """Count a handoff that makes no sense."""
        self._load_failures += 1

    def pull(self, sequence: Sequence, num_blocks: int, now_s: float) -> float:
        """Begin to pull ``num_blocks``; return by how much that makes this step longer.

        Asynchronous pulls cost no step any time: ``take_loaded`` returns them when they end.
        """
        num_bytes = num_blocks * self._limits.block_bytes
        duration_s = self._limits.link.transfer_s(num_bytes) / self._limits.speedup
        self._loads += 1
        self._load_bytes += num_bytes
        self._load_s += duration_s
        if not self._limits.async_load:
            return duration_s
        heapq.heappush(self._loading, (now_s + duration_s, sequence.order, sequence))
        return 0.0

    def take_loaded(self, now_s: float) -> list[Sequence]:
        """Return the requests whose pull has ended by now."""
        loaded = []
        while self._loading and self._loading[0][0] <= now_s:
            sequence = heapq.heappop(self._loading)[2]
            if sequence.is_live:
                loaded.append(sequence)
        return loaded

    def stats(self) -> dict[str, int | float]:
        """Return the answer to ``nodeserve_kv_stats``."""
        return {
            "leased": self._leases.num_granted,
            "loads": self._loads,
            "load_failures": self._load_failures,
            "load_bytes": self._load_bytes,
            "load_ms": self._load_s * 1e3,
            "expired": self._leases.num_expired,
        }

    def probe(self) -> dict[str, float | str]:
        """Return the answer to ``nodeserve_probe``: what the model says, whatever the speed-up."""
        link = self._limits.link
        gbps = round(PROBE_BYTES / link.transfer_s(PROBE_BYTES) / 1e9, 3)
        return {
            "transport": SIMULATED,
            "latency_us": round(link.setup_s * 1e6, 1),
            "gbps_64kb": gbps,
            "gbps_256kb": gbps,
            "gbps_64mb": gbps,
        }

    def check(self) -> None:
        """Raise InvariantError unless every lease has one slot, and its blocks are not free."""
        self._leases.check()
        freed = [block for block in self._leases.blocks() if self._kv.is_free(block)]
        if freed:
            raise InvariantError(f"simulated engine: blocks {freed} are leased and free")

    def _carry_out(self, commands: list[Command]) -> int | None:
        """Pin and unpin as the lease book says; return the lease it granted, if it did."""
        lease_id = None
        for command in commands:
            match command:
                case PinBlocks(blocks):
                    self._kv.pin(blocks)
                case UnpinBlocks(blocks):
                    self._kv.release(blocks)
                case PublishSlot(_, granted):
                    lease_id = granted
                case _:
                    pass  # slots lie in shared memory, which a simulation does without
        return lease_id
