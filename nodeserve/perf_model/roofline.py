"""Profiles computed from data sheets, for models and GPUs that nobody has measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nodeserve.errors import ConfigError
from nodeserve.perf_model.latency import Link
from nodeserve.perf_model.model_shape import ModelShape
from nodeserve.perf_model.profile import Profile

KNOT_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

WEIGHT_EFFICIENCY: Final = 0.77
"""Share of peak bandwidth when reading weights: Llama-70B FP8 on H100, 70.6 GB in 27.4 ms."""

_KV_EFFICIENCY: Final = 0.93
"""The same when reading KV: 0.93-0.94 on H100, 0.91-0.92 on H200."""

GEMM_EFFICIENCY: Final = 0.61
"""Share of peak compute in prefill: Llama-70B FP8 on H100."""

_ATTENTION_EFFICIENCY: Final = 0.65
"""Share of bf16 peak compute in prefill attention on H100."""

_TP_EXPONENT: Final = -0.36
"""Per-GPU prefill efficiency is tp ** this: 78, 61, 47 %; measured 80, 61, 44 % at TP 2, 4, 8."""

_ALL_REDUCE_MS: Final = 0.020
"""One small all-reduce, with what a rank waits for the others; a layer has two. What is left of
Llama-70B's one-token step on H100 after reading weights: 16, 20, 23 us each at TP 2, 4, 8."""

_OVERHEAD_MS: Final = 1.5
"""Scheduling and sampling per step: Llama-70B FP8 on H100."""

_HANDOFF_SETUP_S: Final = 0.020
"""Orchestration of one tuned handoff, beside the bytes."""

_HOST_SETUP_S: Final = 0.000_050
"""One batch of copies between a GPU and host memory: launches and the look at its end."""

_HOST_SHARE: Final = 0.8
"""Of a pinned copy at PCIe's full speed, with blocks of some hundred KiB."""

_HANDOFF_SHARE: Final = 1 / 3
"""Of NVLink's one-way peak: 150 of 450 GB/s on H100, by tuned connectors."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Data sheet of one GPU; FLOP/s are dense, NVLink is one way, and so is PCIe to the host.

    ``fp8_flops`` equals ``bf16_flops`` where the hardware has no FP8.
    """

    memory_bytes: int
    memory_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    link_bytes_per_s: float
    host_bytes_per_s: float = 55e9


GPUS: Final[Mapping[str, GpuSpec]] = {
    "a100-sxm": GpuSpec(85_900_000_000, 2.039e12, 312e12, 312e12, 300e9, 25e9),
    "h100-sxm": GpuSpec(85_900_000_000, 3.35e12, 989e12, 1979e12, 450e9),
    "h200-sxm": GpuSpec(151_000_000_000, 4.8e12, 989e12, 1979e12, 450e9),
    "b200-sxm": GpuSpec(192_000_000_000, 8.0e12, 2250e12, 4500e12, 900e9),
}
"""Source: NVIDIA data sheets; memory as CUDA reports it on H100 80 GB and H200 141 GB."""

_SYSTEM: Final = re.compile(r"(?P<count>[1-9]\d*)x(?P<gpu>[a-z0-9-]+)")
_MAX_GPUS: Final = 64


def parse_system(system: str) -> tuple[int, str]:
    """Return the number of GPUs and the name of one in, for example, ``8xh100-sxm``.

    Raises:
        ConfigError: Not of that form, more than 64 GPUs, or an unknown GPU.
    """
    match = _SYSTEM.fullmatch(system)
    if match is None:
        raise ConfigError(f"simulate: {system!r} is not <count>x<gpu>; write 8xh100-sxm")
    count = int(match["count"])
    if count > _MAX_GPUS:
        raise ConfigError(f"simulate: {system!r} has {count} GPUs; a node has at most {_MAX_GPUS}")
    gpu_spec(match["gpu"])
    return count, match["gpu"]


def gpu_spec(gpu: str) -> GpuSpec:
    """Return the data sheet of a GPU.

    Raises:
        ConfigError: No such GPU is known.
    """
    spec = GPUS.get(gpu)
    if spec is None:
        raise ConfigError(f"simulate: GPU {gpu!r} is unknown; choose one of {', '.join(GPUS)}")
    return spec


def handoff_link(gpu: GpuSpec) -> Link:
    """Return what pulls KV from one such GPU to another over NVLink."""
    return Link(setup_s=_HANDOFF_SETUP_S, bytes_per_s=gpu.link_bytes_per_s * _HANDOFF_SHARE)


def host_link(gpu: GpuSpec) -> Link:
    """Return what moves KV between one such GPU and host memory over PCIe."""
    return Link(setup_s=_HOST_SETUP_S, bytes_per_s=gpu.host_bytes_per_s * _HOST_SHARE)


def roofline_profile(shape: ModelShape, gpu: str, tp: int, kv_value_bytes: int) -> Profile:
    """Return a profile from the sizes of a model and a GPU's data sheet.

    A step of x tokens takes the longer of reading the weights that x tokens touch and of
    computing 2 * active parameters * x, plus two all-reduces a layer. A mixture of E experts, k
    per token, touches ``1 - (1 - k/E) ** x`` of them, if routing is uniform. Attention costs
    ``4 * layers * heads * head_dim`` FLOP per query-key pair. Source of the efficiencies: fits
    to AIConfigurator 0.12 on H100, in the constants of this module.

    Args:
        shape: The model.
        gpu: A name in ``GPUS``.
        tp: Tensor parallel size.
        kv_value_bytes: Bytes of one KV value: 2 for bf16, 1 for fp8.
    """
    spec = gpu_spec(gpu)
    if tp < 1:
        raise ConfigError(f"simulate: tp is {tp}; must be at least 1")
    kv_bytes = shape.kv_bytes_per_token(tp, kv_value_bytes)
    pair_flop = 4 * shape.num_layers * shape.num_heads * shape.head_dim
    pair_s = pair_flop / (tp * spec.bf16_flops * _ATTENTION_EFFICIENCY)
    context_s = kv_bytes / (tp * spec.memory_bytes_per_s * _KV_EFFICIENCY)
    return Profile(
        name=f"{shape.model_type} on {tp} {gpu}",
        source="roofline",
        knot_tokens=KNOT_TOKENS,
        knot_ms=tuple(_linear_ms(shape, spec, tp, tokens) for tokens in KNOT_TOKENS),
        pair_ns=pair_s * 1e9,
        context_token_ns=context_s * 1e9,
        prefill_scale=1.0,
        decode_scale=1.0,
        overhead_ms=_OVERHEAD_MS,
        kv_bytes_per_token=kv_bytes,
        weight_bytes=shape.weight_bytes,
    )


def _linear_ms(shape: ModelShape, spec: GpuSpec, tp: int, tokens: int) -> float:
    touched = float(shape.dense_params)
    if shape.num_experts:
        missed = (1 - shape.experts_per_token / shape.num_experts) ** tokens
        touched += shape.expert_params * (1 - missed)
    weight_bytes = touched * shape.bytes_per_weight
    read_s = weight_bytes / (tp * spec.memory_bytes_per_s * WEIGHT_EFFICIENCY)
    flops = spec.fp8_flops if shape.bytes_per_weight == 1.0 else spec.bf16_flops
    efficiency = float(GEMM_EFFICIENCY * tp**_TP_EXPONENT)
    compute_s = 2 * shape.active_params * tokens / (tp * flops * efficiency)
    reduce_ms = 2 * shape.num_layers * _ALL_REDUCE_MS if tp > 1 else 0.0
    return max(read_s, compute_s) * 1e3 + reduce_ms
