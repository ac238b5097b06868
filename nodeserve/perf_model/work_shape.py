"""What a token costs one GPU of a worker, for dividing a step's energy among its requests."""

import re
from typing import Final

from nodeserve.perf_model.model_shape import ModelShape
from nodeserve.perf_model.roofline import (
    GEMM_EFFICIENCY,
    GPUS,
    WEIGHT_EFFICIENCY,
    GpuSpec,
)
from nodeserve.wire.accounting import WorkShape

STAND_IN: Final = "h100-sxm"
"""For devices whose data sheet is not known: between kinds of GPU the ratio of compute to
bandwidth differs less than between a prompt's tokens and an answer's."""

_MEAN_BATCH: Final = 32
"""Tokens of a step for which a mixture's experts are counted."""

TYPICAL: Final = WorkShape(
    token_flops=16e9,
    pair_flops=4.0 * 32 * 4096,
    kv_bytes=131_072.0,
    weight_bytes=16e9,
    flops_per_s=989e12 * GEMM_EFFICIENCY,
    bytes_per_s=3.35e12 * WEIGHT_EFFICIENCY,
)
"""For a model of unknown shape: Llama-8B in bf16 on an H100."""

_NAMES: Final = re.compile(r"(?P<kind>[ABH]\d{3})", re.IGNORECASE)


def known_gpu(name: str) -> str:
    """Return which data sheet fits a GPU by the name its driver gives it, else ``STAND_IN``.

    ``NVIDIA H100 80GB HBM3`` is ``h100-sxm``.
    """
    found = _NAMES.search(name)
    gpu = f"{found['kind'].lower()}-sxm" if found else STAND_IN
    return gpu if gpu in GPUS else STAND_IN


def work_shape(shape: ModelShape, gpu: GpuSpec, tp: int, kv_value_bytes: int) -> WorkShape:
    """Return what a token of a model costs each of ``tp`` GPUs.

    A token's products are ``2 * active parameters`` FLOP, a query-key pair
    ``4 * layers * heads * head_dim``; a step reads the weights that some 32 tokens touch.
    The peaks are what is reached of the data sheet's (``perf_model.roofline``).

    Args:
        shape: The model.
        gpu: One GPU's data sheet.
        tp: Tensor parallel size, at least 1.
        kv_value_bytes: Bytes of one KV value: 2 for bf16, 1 for fp8.
    """
    touched = float(shape.dense_params)
    if shape.num_experts:
        missed = (1 - shape.experts_per_token / shape.num_experts) ** _MEAN_BATCH
        touched += shape.expert_params * (1 - missed)
    peak_flops = gpu.fp8_flops if shape.bytes_per_weight == 1.0 else gpu.bf16_flops
    return WorkShape(
        token_flops=2 * shape.active_params / tp,
        pair_flops=4 * shape.num_layers * shape.num_heads * shape.head_dim / tp,
        kv_bytes=shape.kv_bytes_per_token(tp, kv_value_bytes) / tp,
        weight_bytes=touched * shape.bytes_per_weight / tp,
        flops_per_s=peak_flops * GEMM_EFFICIENCY,
        bytes_per_s=gpu.memory_bytes_per_s * WEIGHT_EFFICIENCY,
    )
