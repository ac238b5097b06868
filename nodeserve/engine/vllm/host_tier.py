"""Makes the scheduler's half of the host tier, and says what an engine's blocks are."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from vllm.config import VllmConfig
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.kv_cache_interface import KVCacheConfig

from nodeserve.clock import Clock
from nodeserve.config.release import pinned_vllm_version
from nodeserve.engine.tier_client import TierClient
from nodeserve.engine.vllm import kv_groups
from nodeserve.engine.vllm.host_tier_scheduler import TierScheduler
from nodeserve.errors import ConfigError
from nodeserve.kv import page_copy
from nodeserve.kv.layout import PoolGeometry
from nodeserve.wire.kv_tier import KvHello

HASH_ALGORITHM: Final = "sha256_cbor"
"""vLLM's canonical block hash: its default pickles, which is not canonical for equal keys."""

_NOT_CONTENT: Final = ("_name_or_path", "transformers_version")


class TierSettings(msgspec.Struct, frozen=True):
    """What nodeserve tells its connector of the tier, through ``kv_connector_extra_config``.

    ``tier_address`` is the block manager's; None for no tier.
    """

    generation: int
    worker: str = ""
    tier_address: str | None = None


def tier_scheduler(
    extra: dict[str, Any],
    config: VllmConfig,
    ranks: Sequence[PoolGeometry],
    pool: BlockPool,
    clock: Clock,
) -> TierScheduler | None:
    """Return the scheduler's half; None where the engine has no tier.

    Args:
        extra: ``kv_connector_extra_config``.
        config: The engine's.
        ranks: Every rank's KV pool.
        pool: The engine's blocks.
        clock: For the block manager's deadlines.
    """
    settings = msgspec.convert(extra, TierSettings)
    if settings.tier_address is None or not has_tier_keys(config):
        return None
    hello = KvHello(
        worker=settings.worker,
        generation=settings.generation,
        pid=os.getpid(),
        model=config.model_config.model,
        kv_format=kv_format(config, ranks[0]),
        block_bytes=page_copy.group_offsets(ranks[0])[-1],
    )
    return TierScheduler(
        TierClient(settings.tier_address, hello, clock),
        pool,
        block_size=ranks[0].block_sizes[0],
        num_ranks=len(ranks),
    )


def require_one_block_size(extra: dict[str, Any], cache: KVCacheConfig) -> None:
    """Refuse a tier for a model whose KV cache groups have blocks for different tokens.

    Args:
        extra: ``kv_connector_extra_config``.
        cache: The engine's.

    Raises:
        ConfigError: There is a tier, and such a model.
    """
    settings = msgspec.convert(extra, TierSettings)
    sizes = [group.kv_cache_spec.block_size for group in cache.kv_cache_groups]
    if settings.tier_address is not None and len(set(sizes)) > 1:
        kinds = ", ".join(
            f"{size} for {kv_groups.kind(group)}"
            for size, group in zip(sizes, cache.kv_cache_groups, strict=True)
        )
        text = (
            f"worker {settings.worker}: the model's KV blocks are of different numbers of tokens "
            f"({kinds}), the host tier keeps blocks of one; remove kv.host"
        )
        raise ConfigError(text)


def has_tier_keys(config: VllmConfig) -> bool:
    """Return whether the engine's block hashes are the same for the same content everywhere."""
    cache = config.cache_config
    return bool(cache.enable_prefix_caching) and cache.prefix_caching_hash_algo == HASH_ALGORITHM


def kv_format(config: VllmConfig, geometry: PoolGeometry) -> bytes:
    """Return a digest of all, beside the weights, that decides what a block's bytes mean.

    Canonical bytes do not depend on the number of ranks, and neither does the digest.
    """
    model = config.model_config
    described = {
        "vllm": pinned_vllm_version(),
        "model": _without_names(model.hf_config.to_dict()),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
        "pages": geometry.page_format,
        "block_sizes": geometry.block_sizes,
        "block_bytes": page_copy.group_offsets(geometry)[-1],
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_names(v) for k, v in value.items() if k not in _NOT_CONTENT}
    return value
