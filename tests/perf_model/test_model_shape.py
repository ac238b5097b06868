import pytest

from nodeserve.errors import ConfigError
from nodeserve.perf_model.model_shape import known_profile_model, parse_model_shape

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128009],
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_llama_70b_has_its_published_size():
    shape = parse_model_shape(LLAMA_70B)
    assert shape.dense_params == pytest.approx(70.6e9, rel=0.001)
    assert shape.active_params == shape.dense_params
    assert shape.weight_bytes == 2 * shape.dense_params
    assert shape.kv_bytes_per_token(tp=4, bytes_per_value=2) == 327_680


def test_mixtral_has_its_published_total_and_active_sizes():
    shape = parse_model_shape(MIXTRAL)
    assert shape.dense_params + shape.expert_params == pytest.approx(46.7e9, rel=0.01)
    assert shape.active_params == pytest.approx(12.9e9, rel=0.01)


def test_few_kv_heads_are_replicated_over_many_ranks():
    shape = parse_model_shape(LLAMA_70B | {"num_key_value_heads": 2})
    assert shape.kv_bytes_per_token(8, 2) == 4 * shape.kv_bytes_per_token(1, 2)


@pytest.mark.parametrize(
    ("config", "bytes_per_weight"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, 1.0),
        ({"quantization_config": {"quant_method": "mxfp4"}}, 0.53125),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, 0.5),
        ({"torch_dtype": "float32"}, 4.0),
        ({}, 2.0),
    ],
)
def test_bytes_per_weight_follow_the_format(config, bytes_per_weight):
    assert parse_model_shape(LLAMA_70B | config).bytes_per_weight == bytes_per_weight


def test_text_config_of_a_multimodal_model_is_what_counts():
    shape = parse_model_shape({"model_type": "outer", "text_config": LLAMA_70B})
    assert (shape.model_type, shape.num_layers) == ("llama", 80)


def test_special_tokens_are_found_single_and_listed():
    assert parse_model_shape(LLAMA_70B).special_token_ids == (128000, 128001, 128009)


@pytest.mark.parametrize("value", [None, 0, -1, "80", True])
def test_missing_or_odd_size_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="num_hidden_layers is"):
        parse_model_shape(LLAMA_70B | {"num_hidden_layers": value})


def test_measured_models_are_recognised_by_shape_and_weights():
    fp8 = {"quantization_config": {"quant_method": "fp8"}}
    assert known_profile_model(parse_model_shape(LLAMA_70B | fp8)) == "llama70b-fp8"
    assert known_profile_model(parse_model_shape(LLAMA_70B)) is None
    assert known_profile_model(parse_model_shape(MIXTRAL)) is None
    gpt_oss = MIXTRAL | {"model_type": "gpt_oss", "num_hidden_layers": 36, "num_local_experts": 128}
    assert known_profile_model(parse_model_shape(gpt_oss)) == "gptoss120b-mxfp4"
