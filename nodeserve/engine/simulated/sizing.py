"""From a worker's spec to the sizes and step times of its simulated engine."""

from dataclasses import dataclass
from typing import Any, Final

from nodeserve.engine.profiles import find_profile, kv_value_bytes, read_model_config
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.wire import FIELDS
from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import ModelShape, parse_model_shape
from nodeserve.perf_model.profile import Profile
from nodeserve.perf_model.roofline import gpu_spec, handoff_link, host_link, parse_system
from nodeserve.perf_model.work_shape import work_shape
from nodeserve.wire.accounting import WorkShape
from nodeserve.wire.spawn import WorkerSpec

_BLOCK_SIZE: Final = 16
_MEMORY_UTILISATION: Final = 0.92
_MAX_NUM_SEQS: Final = 1024
_MAX_NUM_BATCHED_TOKENS: Final = 8192
"""Source of the four: vLLM 0.32's defaults for its API server on H100."""

_OVERHEAD_BYTES_PER_GPU: Final = 4_500_000_000
"""CUDA context, graphs and activations: Llama-70B on H100."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """Everything that a simulated engine knows about itself."""

    limits: Limits
    profile: Profile
    shape: ModelShape
    max_model_len: int
    tp: int
    work: WorkShape

    def ready_map(self, instance_id: str) -> dict[str, Any]:
        """Return vLLM's EngineCoreReadyResponse."""
        limits = self.limits
        kv_tokens = limits.num_blocks * limits.block_size
        return {
            "max_model_len": self.max_model_len,
            "num_gpu_blocks": limits.num_blocks,
            "block_size": limits.block_size,
            "dp_stats_address": None,
            "dtype": "bfloat16",
            "vllm_version": FIELDS.vllm_version,
            "world_size": self.tp,
            "data_parallel_size": 1,
            "tensor_parallel_size": self.tp,
            "pipeline_parallel_size": 1,
            "decode_context_parallel_size": 1,
            "data_parallel_rank": 0,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "instance_id": instance_id,
            "supports_lora": False,
            "max_loras": 0,
            "mamba_block_size": None,
            "kv_cache_size_tokens": kv_tokens,
            "kv_cache_max_concurrency": kv_tokens / self.max_model_len,
            "kv_events_config": None,
            "weight_transfer_backend": None,
            "enable_sleep_mode": False,
            "supports_draft_weight_updates": False,
            "effective_attention_block_size": limits.block_size,
        }


def size_engine(spec: WorkerSpec) -> Sizing:
    """Return the sizes of the engine that ``spec`` asks for.

    Of vLLM's arguments it obeys ``block_size``, ``enable_prefix_caching``,
    ``gpu_memory_utilization``, ``kv_cache_dtype``, ``max_model_len``,
    ``max_num_batched_tokens``, ``max_num_seqs``, ``num_gpu_blocks_override`` and
    ``quantization``; others make no difference to a simulation.

    Raises:
        ConfigError: The model cannot be read or does not fit, or a size makes no sense.
    """
    engine, args = spec.engine, _Args(spec)
    _, gpu = parse_system(engine.simulate or "")
    shape = parse_model_shape(read_model_config(engine.model, engine.args.get("quantization")))
    value_bytes = kv_value_bytes(engine)
    profile = find_profile(shape, gpu, engine.tp, value_bytes)
    block_size = args.size("block_size", _BLOCK_SIZE)
    block_bytes = profile.kv_bytes_per_token * block_size
    utilisation = args.share("gpu_memory_utilization", _MEMORY_UTILISATION)
    memory_bytes = int(gpu_spec(gpu).memory_bytes * utilisation) - _OVERHEAD_BYTES_PER_GPU
    free_bytes = memory_bytes * engine.tp - profile.weight_bytes
    max_model_len = args.size("max_model_len", shape.max_model_len)
    limits = Limits(
        generation=spec.generation,
        num_blocks=args.size("num_gpu_blocks_override", max(0, free_bytes // block_bytes)),
        block_size=block_size,
        block_bytes=block_bytes,
        max_num_seqs=args.size("max_num_seqs", _MAX_NUM_SEQS),
        max_num_batched_tokens=args.size("max_num_batched_tokens", _MAX_NUM_BATCHED_TOKENS),
        link=handoff_link(gpu_spec(gpu)),
        host_link=host_link(gpu_spec(gpu)),
        speedup=_checked_speedup(spec),
        prefix_caching=engine.args.get("enable_prefix_caching") is not False,
        async_load=spec.kv.async_load,
        lease_ttl_s=spec.kv.lease_ttl_s,
    )
    _check_fits(spec, limits, max_model_len)
    work = work_shape(shape, gpu_spec(gpu), engine.tp, value_bytes)
    return Sizing(limits, profile, shape, max_model_len, engine.tp, work)


class _Args:
    """vLLM's arguments of one worker, read with their types checked."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = spec.name
        self._args = spec.engine.args

    def size(self, name: str, default: int) -> int:
        value = self._args.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"worker {self._worker}: {name} is {value!r}; give a whole number above 0"
            )
        return value

    def share(self, name: str, default: float) -> float:
        value = self._args.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigError(
                f"worker {self._worker}: {name} is {value!r}; give a number above 0, at most 1"
            )
        return float(value)


def _checked_speedup(spec: WorkerSpec) -> float:
    speedup = spec.engine.speedup
    if not speedup > 0:
        raise ConfigError(
            f"worker {spec.name}: speedup is {speedup:g}; give a number above 0, or inf"
        )
    return speedup


def _check_fits(spec: WorkerSpec, limits: Limits, max_model_len: int) -> None:
    needed = limits.num_blocks_for(max_model_len)
    if needed > limits.num_blocks:
        raise ConfigError(
            f"worker {spec.name}: one request of max_model_len {max_model_len} needs {needed} KV "
            f"blocks, {limits.num_blocks} fit beside the weights on {spec.engine.tp} of "
            f"{spec.engine.simulate}; lower max_model_len or raise tp"
        )
    if limits.max_num_batched_tokens < limits.max_num_seqs:
        raise ConfigError(
            f"worker {spec.name}: max_num_batched_tokens {limits.max_num_batched_tokens} is below "
            f"max_num_seqs {limits.max_num_seqs}; each running request needs one token per step"
        )
