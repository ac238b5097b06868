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

from nodeserve.engine.vllm import kv_groups
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
    """Answer, by model and whether loads may be parked, with why it is refused."""
    answers = {}
    for (name, specs), async_load in itertools.product(SPECS.items(), (True, False)):
        groups = [KVCacheGroupSpec([f"layer-{i}"], spec) for i, spec in enumerate(specs)]
        config = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
        try:
            kv_groups.require_supported(config, async_load=async_load)
        except ConfigError as error:
            answers[name, async_load] = str(error)
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
