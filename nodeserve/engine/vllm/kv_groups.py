"""Which KV cache groups of a model can be handed over, and what a decode leg needs of each."""

from typing import Final

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    iter_layer_specs,
)

from nodeserve.errors import ConfigError

FULL: Final = (FullAttentionSpec, MLAAttentionSpec)
WINDOWED: Final = (SlidingWindowSpec, ChunkedLocalAttentionSpec)


def problem(config: KVCacheConfig) -> str | None:
    """Return why a model's KV cannot be handed over; None if it can."""
    for group in config.kv_cache_groups:
        for spec in iter_layer_specs(group.kv_cache_spec):
            # Subclasses keep other things in their blocks than the KV of tokens in order.
            if type(spec) not in FULL + WINDOWED or spec.tokens_per_state != 1:
                layers = ", ".join(group.layer_names[:2])
                return (
                    f"the model's layers {layers} and so on keep KV of the kind "
                    f"{type(spec).__name__}, which cannot be handed over"
                )
        if group.host_resident or not group.enable_kv_transfer:
            return "the model's KV lies partly in host memory (HiSparse)"
    return None if config.kv_cache_groups else "the model has no KV cache"


def require_supported(config: KVCacheConfig, *, async_load: bool, one_block_size: bool) -> None:
    """Refuse models whose KV cannot be handed over, or not so.

    Args:
        config: vLLM's groups of the model.
        async_load: Whether requests wait for their loads across steps.
        one_block_size: Whether all workers of the node have blocks of one size.

    Raises:
        ConfigError: Saying what cannot, and what to do.
    """
    if (found := problem(config)) is not None:
        text = f"{found}; serve another model"
        raise ConfigError(text)
    if is_plain(config):
        return
    kinds = ", ".join(kind(group) for group in config.kv_cache_groups)
    if not one_block_size:
        text = (
            f"the node's workers differ in block_size, which does not work with KV cache groups of "
            f"{kinds}: larger blocks would begin before what smaller ones keep of a window; give "
            "all workers the same"
        )
        raise ConfigError(text)
    if not async_load:
        text = (
            f"kv.async_load = false does not work with KV cache groups of {kinds}: vLLM cannot "
            "compute again what such a load misses; remove it"
        )
        raise ConfigError(text)


def is_plain(config: KVCacheConfig) -> bool:
    """Return whether every layer has the KV of every token."""
    groups = config.kv_cache_groups
    return len(groups) == 1 and not any(
        isinstance(spec, WINDOWED) for spec in iter_layer_specs(groups[0].kv_cache_spec)
    )


def kind(group: KVCacheGroupSpec) -> str:
    """Return a short name for what a group's layers attend to."""
    spec = _first_spec(group)
    if isinstance(spec, SlidingWindowSpec):
        return f"a sliding window of {spec.sliding_window} tokens"
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return f"chunks of {spec.attention_chunk_size} tokens"
    return "full attention"


def first_needed_block(group: KVCacheGroupSpec, num_tokens: int) -> int:
    """Return the first block that is read once ``num_tokens`` tokens are computed.

    Source: get_num_skipped_tokens in vllm/v1/core/single_type_kv_cache_manager.py (0.32).
    """
    spec, skipped = _first_spec(group), 0
    if isinstance(spec, SlidingWindowSpec):
        skipped = max(0, num_tokens - spec.sliding_window + 1 - spec.extra_retained_tokens)
    elif isinstance(spec, ChunkedLocalAttentionSpec):
        skipped = num_tokens // spec.attention_chunk_size * spec.attention_chunk_size
    return skipped // group.kv_cache_spec.block_size


def _first_spec(group: KVCacheGroupSpec) -> KVCacheSpec:
    return next(iter(iter_layer_specs(group.kv_cache_spec)))
