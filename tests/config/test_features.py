import pytest

from nodeserve.config.facts import ModelFacts
from nodeserve.config.features import ON_COMMAND_LINE, OWNED, option, refuse_args, refuse_model
from nodeserve.config.problems import Problems


def errors(args, path="engine.args"):
    problems = Problems("config.toml")
    refuse_args(args, path, problems)
    return problems.errors


@pytest.mark.parametrize("name", OWNED)
def test_what_nodeserve_sets_is_refused_with_what_to_do_instead(name):
    assert errors({name: 1}) == [
        f"config.toml: engine.args.{name} is set by nodeserve: {OWNED[name]}"
    ]


@pytest.mark.parametrize(
    ("args", "feature"),
    [
        ({"speculative_config": {"method": "ngram"}}, "speculative decoding"),
        ({"spec_tokens": 3}, "speculative decoding"),
        ({"enable_lora": True}, "LoRA"),
        ({"lora_modules": ["a=b"]}, "LoRA"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"runner": "pooling"}, "generative models"),
        ({"convert": "embed"}, "generative models"),
        ({"data_parallel_rank": 1}, "one node"),
    ],
)
def test_what_does_not_work_across_workers_is_refused_by_name(args, feature):
    [error] = errors(args)
    assert feature in error


@pytest.mark.parametrize(
    "args",
    [
        {"enable_lora": False},
        {"speculative_config": None},
        {"decode_context_parallel_size": 1},
        {"runner": "generate"},
        {"convert": "none"},
        {"max_model_len": 10},
    ],
)
def test_what_is_switched_off_is_let_through(args):
    assert errors(args) == []


def test_the_command_line_is_answered_in_its_own_words():
    assert option("kv_transfer_config") == "--kv-transfer-config"
    [error] = errors({"kv_transfer_config": {}}, ON_COMMAND_LINE)
    assert error.startswith("config.toml: --kv-transfer-config is set by nodeserve")


def model_errors(args=None, **facts):
    problems = Problems("config.toml")
    refuse_model(ModelFacts(path="/m", given="m", **facts), args or {}, problems)
    return problems.errors


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"keys": ("vision_config",)}, "takes images, audio or video (`vision_config`"),
        ({"keys": ("audio_config",)}, "takes images, audio or video (`audio_config`"),
        ({"keys": ("is_encoder_decoder",)}, "an encoder-decoder"),
        ({"architectures": ("BertModel",)}, "is a BertModel, which embeds or classifies"),
        ({"architectures": ("Qwen2ForSequenceClassification",)}, "embeds or classifies"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(facts, what):
    [error] = model_errors(**facts)
    assert what in error


def test_a_generative_text_model_is_served():
    assert model_errors(architectures=("LlamaForCausalLM",), keys=("hidden_size",)) == []


def test_the_text_part_of_a_multimodal_model_is_served():
    assert model_errors({"language_model_only": True}, keys=("vision_config",)) == []
