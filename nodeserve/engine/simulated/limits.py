"""What one simulated engine can hold and do."""

from dataclasses import dataclass

from nodeserve.perf_model.latency import Link


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the scheduler works with.

    Attributes:
        generation: Named in handoffs as the owner of their blocks.
        block_bytes: KV bytes of one block over all layers and ranks.
        max_num_batched_tokens: Tokens per step; at least ``max_num_seqs``.
        link: What a handoff is pulled over.
        host_link: What blocks go over to host memory and back.
        speedup: Divides the time of a pull; ``inf`` makes it zero.
        async_load: Pulls run beside other requests' steps, not inside them.
        lease_slots: Leases that may hold at a time; past it the oldest one ends.
    """

    generation: int
    num_blocks: int
    block_size: int
    block_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    link: Link
    host_link: Link
    speedup: float
    prefix_caching: bool = True
    async_load: bool = True
    lease_ttl_s: float = 60.0
    lease_slots: int = 16_384

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks ``num_tokens`` tokens occupy."""
        return -(-num_tokens // self.block_size)
