"""What a test of KV cache groups finds in a process that has vLLM imported."""

import itertools
from multiprocessing.connection import Connection

import torch
from vllm.v1.core.single_type_kv_cache_manager import (
    ChunkedLocalAttentionManager,
    SlidingWindowManager,
)
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SinkFullAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from nodeserve.clock import MonotonicClock
from nodeserve.engine.vllm import host_tier, kv_groups
from nodeserve.engine.vllm.connector_messages import PoolHandshake
from nodeserve.engine.vllm.connector_scheduler import ConnectorSettings, SchedulerSide
from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.errors import ConfigError

_COMMON = {"block_size": 16, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float32}
FULL = FullAttentionSpec(**_COMMON)
WINDOW = SlidingWindowSpec(**_COMMON, sliding_window=40)
CHUNKED = ChunkedLocalAttentionSpec(**_COMMON, attention_chunk_size=48)
SPECS: dict[str, list[KVCacheSpec]] = {
    "full": [FULL],
    "latent": [MLAAttentionSpec(**_COMMON)],
    "hybrid": [FULL, WINDOW, CHUNKED],
    "mixed": [UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"a": FULL, "b": FULL})],
    "mamba": [FULL, MambaSpec(block_size=16, shapes=((4,),), dtypes=(torch.float32,))],
    "sinks": [SinkFullAttentionSpec(**_COMMON, sink_len=16)],
    "compressed": [MLAAttentionSpec(**_COMMON, tokens_per_state=4)],
    "none": [],
}


def refusals(pipe: Connection) -> None:
    """Answer with refusals, by model, whether loads may be parked, and whether blocks are alike."""
    answers = {}
    kinds = itertools.product(SPECS.items(), (True, False), (True, False))
    for (name, specs), async_load, one_block_size in kinds:
        groups = [KVCacheGroupSpec([f"layer-{i}"], spec) for i, spec in enumerate(specs)]
        config = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
        try:
            kv_groups.require_supported(
                config, async_load=async_load, one_block_size=one_block_size
            )
        except ConfigError as error:
            answers[name, async_load, one_block_size] = str(error)
    pipe.send(answers)


def tiers(pipe: Connection) -> None:
    """Answer why a host tier is refused for groups with blocks of one size and of two."""
    large = SlidingWindowSpec(**(_COMMON | {"block_size": 32}), sliding_window=40)
    extra = {"generation": 1, "worker": "decode-0", "tier_address": "ipc:///x"}
    answers: list[str | None] = []
    for specs, settings in (
        ([FULL, WINDOW], extra),
        ([FULL, large], extra),
        ([FULL, large], extra | {"tier_address": None}),
    ):
        groups = [KVCacheGroupSpec([f"layer-{i}"], spec) for i, spec in enumerate(specs)]
        config = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
        try:
            host_tier.require_one_block_size(settings, config)
            answers.append(None)
        except ConfigError as error:
            answers.append(str(error))
    pipe.send(answers)


def undivided(pipe: Connection) -> None:
    """Answer, by what differs between workers, why pages that are kept whole are refused."""
    config = KVCacheConfig(8, [], [KVCacheGroupSpec(["layer"], FULL)])
    pool = PoolDescription(handle={}, geometry={})
    kept = {"heads": "NVFP4", "tokens": "CPU_ATTN amx bfloat16"}
    answers = {}
    for one_tp, one_block_size in ((False, True), (True, False)):
        settings = ConnectorSettings(
            generation=1,
            async_load=True,
            load_at_once_bytes=0,
            lease_ttl_s=1.0,
            one_tp=one_tp,
            one_block_size=one_block_size,
        )
        side = SchedulerSide(settings, config, MonotonicClock())
        try:
            side.set_pools({0: PoolHandshake(pool, kept)})
        except ConfigError as error:
            answers[one_tp, one_block_size] = str(error)
        finally:
            side.close()
    pipe.send(answers)


def windows(pipe: Connection) -> None:
    """Answer with the lengths at which we and vLLM differ in what a window needs."""
    managers = ((WINDOW, SlidingWindowManager), (CHUNKED, ChunkedLocalAttentionManager))
    differing = []
    for spec, kind in managers:
        manager = object.__new__(kind)
        vars(manager).update(
            sliding_window=40, attention_chunk_size=48, extra_retained_tokens=0, block_size=16
        )
        group = KVCacheGroupSpec(["layer"], spec)
        differing += [
            (type(spec).__name__, num_tokens)
            for num_tokens in range(300)
            if kv_groups.first_needed_block(group, num_tokens)
            != manager.get_num_skipped_tokens(num_tokens) // 16
        ]
    pipe.send(differing)
