import importlib.resources

import pytest

from nodeserve.errors import ConfigError
from nodeserve.perf_model.latency import StepWork, step_s
from nodeserve.perf_model.model_shape import parse_model_shape
from nodeserve.perf_model.profile import ProfileKey, parse_profiles
from nodeserve.perf_model.roofline import (
    gpu_spec,
    handoff_link,
    parse_system,
    roofline_profile,
)

LLAMA_70B_FP8 = parse_model_shape(
    {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "quantization_config": {"quant_method": "fp8"},
    }
)


@pytest.mark.parametrize(
    ("system", "parsed"),
    [("8xh100-sxm", (8, "h100-sxm")), ("1xa100-sxm", (1, "a100-sxm"))],
)
def test_system_is_a_count_and_a_gpu(system, parsed):
    assert parse_system(system) == parsed


@pytest.mark.parametrize(
    ("system", "what"),
    [
        ("h100-sxm", "write 8xh100-sxm"),
        ("0xh100-sxm", "write 8xh100-sxm"),
        ("8 x h100-sxm", "write 8xh100-sxm"),
        ("", "write 8xh100-sxm"),
        ("65xh100-sxm", "has 65 GPUs; a node has at most 64"),
        ("8xh900", "'h900' is unknown; choose one of a100-sxm"),
    ],
)
def test_odd_system_is_refused_with_what_to_write(system, what):
    with pytest.raises(ConfigError, match=what):
        parse_system(system)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "work",
    [
        StepWork(decoding=8, context_tokens=16_000),
        StepWork(prefill_tokens=8192, prefill_pairs=8192 * 4096),
    ],
)
def test_roofline_is_near_what_was_measured_where_both_exist(tp, work):
    data = importlib.resources.files("nodeserve.perf_model").joinpath("data/step_time_knots.csv")
    measured = parse_profiles(data.read_text("utf-8"), "shipped")
    key = ProfileKey("llama70b-fp8", "h100-sxm", tp)
    guess = roofline_profile(LLAMA_70B_FP8, "h100-sxm", tp, kv_value_bytes=2)
    assert step_s(guess, work) == pytest.approx(step_s(measured[key], work), rel=0.25)
    assert guess.pair_ns == pytest.approx(measured[key].pair_ns, rel=0.06)
    assert guess.context_token_ns == pytest.approx(measured[key].context_token_ns, rel=0.06)


def test_mixture_of_experts_reads_more_weights_as_the_batch_grows_until_all_are_read():
    shape = parse_model_shape(
        {
            "hidden_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_hidden_layers": 36,
            "intermediate_size": 2880,
            "vocab_size": 201088,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "quantization_config": {"quant_method": "mxfp4"},
        }
    )
    profile = roofline_profile(shape, "h100-sxm", 1, kv_value_bytes=2)
    assert profile.linear_ms(16) > 4 * profile.linear_ms(1)
    assert profile.linear_ms(256) < 1.1 * profile.linear_ms(128)


def test_fp8_kv_halves_attention_in_decode():
    wide = roofline_profile(LLAMA_70B_FP8, "h100-sxm", 1, kv_value_bytes=2)
    narrow = roofline_profile(LLAMA_70B_FP8, "h100-sxm", 1, kv_value_bytes=1)
    assert narrow.context_token_ns == pytest.approx(wide.context_token_ns / 2)


def test_tp_below_one_is_refused():
    with pytest.raises(ConfigError, match="tp is 0"):
        roofline_profile(LLAMA_70B_FP8, "h100-sxm", 0, kv_value_bytes=2)


def test_handoff_of_3000_llama_tokens_takes_tens_of_milliseconds():
    link = handoff_link(gpu_spec("h100-sxm"))
    assert link.transfer_s(3000 * 327_680) == pytest.approx(0.0266, rel=0.01)
