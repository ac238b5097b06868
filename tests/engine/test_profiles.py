import json

import pytest

from nodeserve.engine.profiles import find_profile, read_model_config
from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import parse_model_shape

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
