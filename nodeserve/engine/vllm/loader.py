"""Copies handed-over KV blocks out of peers' pools, and says when the bytes cannot be trusted.

Knows nothing of vLLM. Pools of peers stay mapped between loads, since mapping is what costs;
those of peers that ended are let go, so that their memory is given back.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.engine.vllm.handoff import Handoff
from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.kv import layout
from nodeserve.kv.layout import PoolGeometry
from nodeserve.transfer.base import Importer, PeerPool
from nodeserve.transfer.lease_table import LeaseTableReader

MAX_PEERS: Final = 64
"""Pools kept mapped at most; a node has fewer workers than this."""


@dataclass(frozen=True, slots=True)
class _Peer:
    pool: PeerPool
    geometry: PoolGeometry
    leases: LeaseTableReader

    def is_current(self) -> bool:
        return self.pool.is_current() and self.leases.is_current()

    def close(self) -> None:
        self.pool.close()
        self.leases.close()


class KvLoader:
    """Loads handed-over blocks into one rank's pool. Not thread-safe: the caller has a lock."""

    def __init__(
        self,
        geometry: PoolGeometry,
        importers: Mapping[str, Importer],
        *,
        rank: int,
        num_ranks: int,
    ) -> None:
        """Load into the pool that ``geometry`` describes.

        Args:
            geometry: Our pool's.
            importers: By transport, each copying into our pool.
            rank: Which of a handoff's pools is our counterpart.
            num_ranks: Tensor parallel size here; the peer's must be the same.
        """
        self._geometry = geometry
        self._importers = importers
        self._rank = rank
        self._num_ranks = num_ranks
        self._peers: OrderedDict[Generation, _Peer] = OrderedDict()

    @property
    def num_peers(self) -> int:
        """How many peers' pools are mapped."""
        return len(self._peers)

    def load(self, handoff: Handoff, first: int, blocks: Sequence[int]) -> int:
        """Copy the handoff's blocks from index ``first`` on into our ``blocks``.

        Returns:
            Bytes copied.

        Raises:
            PeerError: Our blocks hold nothing to be trusted; whatever the cause, the prompt has
                to be computed here.
        """
        peer = self._open(handoff)
        slot, lease_id = handoff.slot, LeaseId(handoff.lease_id)
        peer.leases.require(slot, lease_id)
        theirs = handoff.blocks[first : first + len(blocks)]
        runs = layout.copy_runs(peer.geometry, theirs, self._geometry, blocks)
        peer.pool.copy(runs)
        # The blocks may have been given to somebody else while we read them.
        peer.leases.require(slot, lease_id)
        return sum(run.length for run in runs)

    def drop_ended(self) -> None:
        """Let go of the pools whose owners have ended."""
        for generation in [g for g, peer in self._peers.items() if not peer.is_current()]:
            self._peers.pop(generation).close()

    def close(self) -> None:
        """Let go of all pools."""
        while self._peers:
            self._peers.popitem()[1].close()

    def _open(self, handoff: Handoff) -> _Peer:
        generation = Generation(handoff.engine)
        if (known := self._peers.get(generation)) is not None:
            self._peers.move_to_end(generation)
            return known
        if len(handoff.pools) != self._num_ranks:
            text = (
                f"handoff of engine {generation} has {len(handoff.pools)} pools, this worker "
                f"{self._num_ranks}: give both workers the same tensor parallel size"
            )
            raise PeerError(text)
        described = handoff.pools[self._rank]
        transport = str(described.handle.get("transport"))
        if (importer := self._importers.get(transport)) is None:
            text = (
                f"engine {generation} hands KV over by {transport}, this worker reads "
                f"{sorted(self._importers)}; run both on the same kind of device"
            )
            raise PeerError(text)
        geometry = layout.from_plain(described.geometry)
        layout.require_like(geometry, self._geometry)
        if geometry.pool_bytes != described.handle.get("bytes"):
            text = f"engine {generation} describes a pool of another size than it exports"
            raise PeerError(text)
        leases = LeaseTableReader(handoff.table, generation)
        try:
            peer = _Peer(importer.open(described.handle), geometry, leases)
        except PeerError:
            leases.close()
            raise
        self.drop_ended()  # a new generation often stands in for one that ended
        self._peers[generation] = peer
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)[1].close()
        return peer
