import json

import pytest

from nodeserve.engine.profiles import find_profile, find_work, kv_value_bytes, read_model_config
from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import parse_model_shape
from nodeserve.perf_model.work_shape import TYPICAL
from nodeserve.wire.spawn import EngineSpec

LLAMA_70B_FP8 = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "quantization_config": {"quant_method": "fp8"},
}


@pytest.mark.parametrize(
    ("gpu", "kv_value_bytes", "source"),
    [
        ("h100-sxm", 2, "AIConfigurator 0.12 (Apache-2.0), fitted to InferenceX"),
        ("h100-sxm", 1, "roofline"),
        ("b200-sxm", 2, "roofline"),
    ],
)
def test_step_times_are_measured_ones_where_they_are_known(gpu, kv_value_bytes, source):
    shape = parse_model_shape(LLAMA_70B_FP8)
    assert find_profile(shape, gpu, 4, kv_value_bytes).source == source


def test_an_argument_quantises_a_model_that_does_not_say(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    assert read_model_config(str(tmp_path), None) == {"a": 1}
    quantised = {"a": 1, "quantization_config": {"quant_method": "fp8"}}
    assert read_model_config(str(tmp_path), "fp8") == quantised


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_model_that_cannot_be_read_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_model_config(str(tmp_path), None)


def spec(model, **args):
    return EngineSpec(model=str(model), served_model_name="m", tp=2, args=args)


def test_what_a_token_costs_depends_on_model_and_gpu(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B_FP8))
    h100, a100 = (find_work(spec(tmp_path), f"NVIDIA {gpu}") for gpu in ("H100", "A100-SXM4"))
    assert h100.token_flops == a100.token_flops == pytest.approx(70e9, rel=0.03)
    assert h100.flops_per_s > a100.flops_per_s
    assert find_work(spec(tmp_path, kv_cache_dtype="fp8"), "").kv_bytes == h100.kv_bytes / 2


def test_a_model_of_unknown_shape_costs_what_a_typical_one_does(tmp_path):
    assert find_work(spec(tmp_path), "NVIDIA H100") == TYPICAL


def test_kv_values_have_two_bytes_unless_they_are_asked_to_have_one(tmp_path):
    kinds = ("auto", "bfloat16", "fp8", "fp8_e4m3")
    sizes = [kv_value_bytes(spec(tmp_path, kv_cache_dtype=kind)) for kind in kinds]
    assert sizes == [2, 2, 1, 1]
