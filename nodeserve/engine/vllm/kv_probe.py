"""What a dispatcher asks of an engine to find out how fast KV comes to it from elsewhere."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.v1.executor import Executor

from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.engine.vllm.host_tier_scheduler import TierScheduler
from nodeserve.errors import PeerError
from nodeserve.transfer import probe
from nodeserve.wire.kv_tier import KvWelcome

JOINED_S: Final = 1.0
"""How long a block manager may take to greet an engine that has nothing else to do."""


def to_plain(pools: Sequence[PoolDescription]) -> list[dict[str, Any]]:
    """Return all ranks' pools as the peer's ``probe_ranks`` takes them."""
    return [msgspec.to_builtins(pool) for pool in pools]


def probe_ranks(executor: Executor, pools: list[dict[str, Any]]) -> dict[str, Any]:
    """Let every rank measure how fast it reads a peer's pools; runs between steps.

    Returns:
        ``transport`` and the figures of transfer.probe, of the slowest rank; or ``error``, why a
        rank cannot read them.
    """
    if not pools:
        return {"error": "the peer has no KV pool to read; restart that worker"}
    return _slowest(executor.collective_rpc(_probe_rank, args=(pools,)))


def probe_tier(executor: Executor, tier: TierScheduler | None) -> dict[str, Any]:
    """Let every rank measure how fast blocks come from the host tier; runs between steps.

    Returns:
        As ``probe_ranks``; the transport is ``pinned_host`` or ``pageable_host`` on a GPU, else
        ``host``.
    """
    if tier is None:
        return {"error": "this engine has no host tier"}
    welcome = tier.client.joined(JOINED_S)
    if welcome is None:
        silent = f"the block manager has not answered within {JOINED_S:g} s"
        return {"error": tier.client.refusal or silent}
    return _slowest(executor.collective_rpc(_probe_tier_rank, args=(welcome,)))


def _slowest(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    if errors := [rank["error"] for rank in ranks if "error" in rank]:
        return {"error": errors[0]}
    transports = {rank.pop("transport") for rank in ranks}
    return {"transport": "+".join(sorted(transports)), **probe.slowest(ranks)}


def _probe_tier_rank(_: Any, welcome: KvWelcome) -> dict[str, Any]:
    connector = get_kv_transfer_group()
    try:
        with connector.worker.memory.scratch(probe.SCRATCH_BYTES) as scratch:
            return connector.tier_worker.measure(welcome, *scratch)
    except PeerError as error:
        return {"error": str(error)}


def _probe_rank(_: Any, pools: list[dict[str, Any]]) -> dict[str, Any]:
    # Ranks are other processes, and what they raise loses its kind on the way.
    try:
        descriptions = [msgspec.convert(pool, PoolDescription) for pool in pools]
        return get_kv_transfer_group().worker.probe(descriptions)
    except (PeerError, msgspec.ValidationError) as error:
        return {"error": str(error)}
