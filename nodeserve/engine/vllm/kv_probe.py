"""What a dispatcher asks of an engine to find out how fast KV comes to it from another one."""

from collections.abc import Sequence
from typing import Any

import msgspec
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.v1.executor import Executor

from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.errors import PeerError
from nodeserve.transfer import probe


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
    ranks = executor.collective_rpc(_probe_rank, args=(pools,))
    if errors := [rank["error"] for rank in ranks if "error" in rank]:
        return {"error": errors[0]}
    transports = {rank.pop("transport") for rank in ranks}
    return {"transport": "+".join(sorted(transports)), **probe.slowest(ranks)}


def _probe_rank(_: Any, pools: list[dict[str, Any]]) -> dict[str, Any]:
    # Ranks are other processes, and what they raise loses its kind on the way.
    try:
        descriptions = [msgspec.convert(pool, PoolDescription) for pool in pools]
        return get_kv_transfer_group().worker.probe(descriptions)
    except (PeerError, msgspec.ValidationError) as error:
        return {"error": str(error)}
