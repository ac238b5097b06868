import dataclasses

import pytest

from nodeserve.perf_model.model_shape import parse_model_shape
from nodeserve.perf_model.roofline import gpu_spec
from nodeserve.perf_model.work_shape import STAND_IN, TYPICAL, known_gpu, work_shape

LLAMA_8B = parse_model_shape(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    }
)
H100 = gpu_spec("h100-sxm")


def test_the_typical_model_is_llama_8b_on_an_h100():
    known = work_shape(LLAMA_8B, H100, 1, 2)
    for name in known.__struct_fields__:
        assert getattr(known, name) == pytest.approx(getattr(TYPICAL, name), rel=0.02)


def test_two_gpus_share_all_of_a_tokens_work():
    one, two = (work_shape(LLAMA_8B, H100, tp, 2) for tp in (1, 2))
    for name in ("token_flops", "pair_flops", "kv_bytes", "weight_bytes"):
        assert getattr(two, name) == getattr(one, name) / 2
    assert (two.flops_per_s, two.bytes_per_s) == (one.flops_per_s, one.bytes_per_s)


def test_few_kv_heads_are_held_by_several_gpus():
    assert work_shape(LLAMA_8B, H100, 16, 2).kv_bytes == work_shape(LLAMA_8B, H100, 8, 2).kv_bytes


def test_weights_of_eight_bits_are_half_as_large_and_computed_faster():
    fp8 = work_shape(dataclasses.replace(LLAMA_8B, bytes_per_weight=1.0), H100, 1, 2)
    bf16 = work_shape(LLAMA_8B, H100, 1, 2)
    assert fp8.weight_bytes == bf16.weight_bytes / 2
    assert fp8.flops_per_s > bf16.flops_per_s


def test_a_mixture_reads_more_than_it_computes_with():
    mixture = dataclasses.replace(
        LLAMA_8B, expert_params=80_000_000_000, num_experts=64, experts_per_token=2
    )
    work = work_shape(mixture, H100, 1, 2)
    assert work.token_flops == 2 * mixture.active_params
    assert mixture.active_params * 2 < work.weight_bytes < mixture.weight_bytes


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA L4", STAND_IN),
        ("", STAND_IN),
        ("NVIDIA B300", STAND_IN),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name, gpu):
    assert known_gpu(name) == gpu
