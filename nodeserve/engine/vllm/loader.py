"""Copies handed-over KV blocks out of peers' pools, and says when the bytes cannot be trusted.

Knows nothing of vLLM. Pools of peers stay mapped between loads, since mapping is what costs;
those of peers that ended are let go, so that their memory is given back.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.engine.vllm.handoff import GroupBlocks, Handoff, LoadPart
from nodeserve.errors import PeerError
from nodeserve.ids import Generation, LeaseId
from nodeserve.kv import layout, page_copy
from nodeserve.kv.layout import NULL_BLOCK, CopyRun, PoolGeometry
from nodeserve.kv.page_copy import PoolBlocks
from nodeserve.transfer.base import Importer, PeerPool
from nodeserve.transfer.lease_table import LeaseTableReader

MAX_PEERS: Final = 64
"""Engines whose pools are kept mapped at most; a node has fewer workers than this."""


@dataclass(frozen=True, slots=True)
class _Peer:
    """What we read of one engine: for each rank that we need, its pool and which places of it."""

    pools: Mapping[int, PeerPool]
    geometries: Mapping[int, PoolGeometry]
    places: Mapping[int, Collection[int]]
    leases: LeaseTableReader

    def is_current(self) -> bool:
        pools = self.pools.values()
        return self.leases.is_current() and all(pool.is_current() for pool in pools)

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()
        self.leases.close()


class KvLoader:
    """Loads handed-over blocks into one rank's pool. Not thread-safe: the caller has a lock."""

    def __init__(
        self, geometry: PoolGeometry, importers: Mapping[str, Importer], *, rank: int
    ) -> None:
        """Load into the pool that ``geometry`` describes.

        Args:
            geometry: Our pool's.
            importers: By transport, each copying into our pool.
            rank: Our tensor parallel rank; where several of a peer's ranks hold what we need, it
                chooses one.
        """
        self._geometry = geometry
        self._importers = importers
        self._rank = rank
        self._peers: OrderedDict[Generation, _Peer] = OrderedDict()

    @property
    def num_peers(self) -> int:
        """How many peers' pools are mapped."""
        return len(self._peers)

    def load(self, handoff: Handoff, parts: Sequence[LoadPart]) -> int:
        """Copy the handoff's tokens into our blocks, one part per KV cache group.

        Returns:
            Bytes copied.

        Raises:
            PeerError: Our blocks hold nothing to be trusted; whatever the cause, the prompt has
                to be computed here.
        """
        peer = self._open(handoff)
        slot, lease_id = handoff.slot, LeaseId(handoff.lease_id)
        peer.leases.require(slot, lease_id)
        num_bytes = 0
        for rank, pool in peer.pools.items():
            runs = [
                run
                for group, (theirs, ours) in enumerate(zip(handoff.groups, parts, strict=True))
                for run in self._group_runs(peer, rank, group, (theirs, ours))
            ]
            pool.copy(runs)
            num_bytes += sum(run.length for run in runs)
        # The blocks may have been given to somebody else while we read them.
        peer.leases.require(slot, lease_id)
        return num_bytes

    def _group_runs(
        self, peer: _Peer, rank: int, group: int, blocks: tuple[GroupBlocks, LoadPart]
    ) -> list[CopyRun]:
        theirs, ours = blocks
        num_null = next((i for i, b in enumerate(ours.blocks) if b != NULL_BLOCK), len(ours.blocks))
        wanted = ours.blocks[num_null:]
        if not wanted:
            return []
        block_size = self._geometry.block_sizes[group]
        start = (ours.first + num_null) * block_size
        first, skip = divmod(start, theirs.block_size)
        # The last tokens are computed here: their blocks may not be needed.
        behind = -(-(start + len(wanted) * block_size) // theirs.block_size)
        if first < theirs.first:
            text = (
                f"handoff has KV cache group {group} from token {theirs.first * theirs.block_size} "
                f"on, needed is token {start}; the prompt is computed here"
            )
            raise PeerError(text)
        return page_copy.copy_runs(
            PoolBlocks(
                peer.geometries[rank], theirs.blocks[first - theirs.first : behind - theirs.first]
            ),
            PoolBlocks(self._geometry, wanted),
            group=group,
            skip_tokens=skip,
            places=peer.places[rank],
        )

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
        geometries = [layout.from_plain(described.geometry) for described in handoff.pools]
        for geometry in geometries:
            page_copy.require_like(geometry, self._geometry)
        places = page_copy.sources(geometries, self._geometry, self._rank)
        leases = LeaseTableReader(handoff.table, generation)
        peer = _Peer(pools := {}, dict(enumerate(geometries)), places, leases)
        try:
            for rank in places:
                pools[rank] = self._open_pool(handoff, rank, geometries[rank])
        except PeerError:
            peer.close()
            raise
        self.drop_ended()  # a new generation often stands in for one that ended
        self._peers[generation] = peer
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)[1].close()
        return peer

    def _open_pool(self, handoff: Handoff, rank: int, geometry: PoolGeometry) -> PeerPool:
        handle = handoff.pools[rank].handle
        transport = str(handle.get("transport"))
        if (importer := self._importers.get(transport)) is None:
            text = (
                f"engine {handoff.engine} hands KV over by {transport}, this worker reads "
                f"{sorted(self._importers)}; run both on the same kind of device"
            )
            raise PeerError(text)
        if geometry.pool_bytes != handle.get("bytes"):
            text = f"engine {handoff.engine} describes a pool of another size than it exports"
            raise PeerError(text)
        return importer.open(handle)
