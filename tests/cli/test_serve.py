import json
import logging

import pytest

from nodeserve.cli.serve import flags_from, serve, surroundings, usable
from nodeserve.config.facts import Cpu, Gpu, Topology
from nodeserve.config.layout import Wish
from nodeserve.config.load import Flags, load_config
from nodeserve.config.node import GatewayKind
from nodeserve.config.tiers import TierWish
from nodeserve.engine.vllm.environment import Platform


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return path


def test_check_prints_a_configuration_that_can_be_served(run, model, tmp_path):
    shown = run(
        "serve", model, "--socket", tmp_path / "a.sock", "--simulate", "2xh100-sxm", "--check"
    )
    assert shown.exit_code == 0
    file = tmp_path / "config.toml"
    file.write_text(shown.output)
    assert run("serve", "--config", file, "--check").output == shown.output


def test_what_follows_the_dashes_is_vllms_even_without_a_model(run, model, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'model = "{model}"\n')
    words = ("--config", file, "--decode", 1, "--check", "--", "--max-model-len", "4k", "--seed=1")
    assert "args = {max_model_len = 4000, seed = 1}" in run("serve", *words).output


def test_every_problem_is_shown_and_the_exit_code_says_that_a_setting_is_wrong(run, tmp_path):
    result = run("serve", tmp_path / "none", "--prefill", 2, "--check", "--", "--enable-lora")
    assert result.exit_code == 78
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("nodeserve: ") for line in lines)


NOT_IN_THIS_RELEASE = {
    "--enable-lora": "LoRA",
    "--lora-modules a=/adapters/a": "LoRA",
    '--speculative-config {"method":"ngram"}': "speculative decoding",
    "--speculative-config.method ngram": "speculative decoding",
    "--spec-method ngram": "speculative decoding",
    "--enable-sleep-mode": "sleep mode",
    "--mm-encoder-only": "encoder-only serving",
    "--runner pooling": "generative models",
    "--convert embed": "generative models",
    "-dcp 2": "context parallelism",
    "-pp 2": "pipelines across GPUs",
    "-dp 2": "`count` in [[workers]]",
    '--kv-transfer-config {"kv_connector":"NixlConnector"}': "moves KV between its workers itself",
}


@pytest.mark.parametrize("words", NOT_IN_THIS_RELEASE)
@pytest.mark.parametrize("simulate", [(), ("--simulate", "2xh100-sxm")], ids=["real", "simulated"])
def test_what_this_release_cannot_do_ends_the_start_with_78_and_its_name(
    run, model, tmp_path, words, simulate
):
    place = ("--socket", tmp_path / "a.sock")
    result = run("serve", model, *place, *simulate, "--", *words.split())
    assert result.exit_code == 78
    [line] = result.stderr.splitlines()
    assert line.startswith("nodeserve: command line: --")
    assert NOT_IN_THIS_RELEASE[words] in line
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


OTHER_MODELS = {
    "images": ({"vision_config": {}}, "takes images, audio or video (`vision_config`"),
    "an encoder": ({"is_encoder_decoder": True}, "is an encoder-decoder"),
    "embeddings": ({"architectures": ["BertModel"]}, "is a BertModel, which embeds"),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_a_model_of_another_kind_ends_the_start_with_78_and_its_name(run, model, tmp_path, kind):
    keys, what = OTHER_MODELS[kind]
    given = {"architectures": ["SomeForCausalLM"]} | keys
    (model / "config.json").write_text(json.dumps(given))
    result = run("serve", model, "--socket", tmp_path / "a.sock")
    assert result.exit_code == 78
    assert what in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_warnings_are_shown_beside_the_configuration(run, model):
    words = ("serve", model, "--decode", 500, "--check")
    assert "500 workers share" in run(*words).stderr


def test_wrong_usage_is_not_a_configuration_error(run):
    assert run("serve", "--gateway", "perl").exit_code == 2


def test_values_of_click_become_flags():
    given = dict.fromkeys([*Flags.__struct_fields__, *Wish.__struct_fields__])
    given |= {"model": "m", "served_model_name": ("a", "b"), "gateway": "rust", "prefill": 2}
    given |= {"kv_host": "1GiB", "kv_disk": None}
    del given["wish"], given["tiers"], given["vllm_args"]
    assert flags_from(given, ("--x",)) == Flags(
        model="m",
        served_model_name=("a", "b"),
        gateway=GatewayKind.RUST,
        wish=Wish(prefill=2),
        tiers=TierWish(host="1GiB"),
        vllm_args=("--x",),
    )


def test_gpus_that_the_installed_vllm_cannot_use_are_no_place_for_a_worker():
    gpu = Gpu(index=0, uuid="GPU-0", name="H100", memory_bytes=80 << 30)
    machine = Topology(gpus=(gpu,), cpus=(Cpu(index=0, core=0),))
    assert usable(machine, Platform.CPU) == Topology(cpus=machine.cpus)
    assert usable(machine, Platform.CUDA) == machine
    assert usable(machine, None) == machine


def test_the_node_runs_with_its_directory_made(model, tmp_path):
    flags = Flags(model=str(model), socket=str(tmp_path / "x" / "a.sock"), simulate="2xh100-sxm")
    config = load_config(flags, surroundings())
    ran = []

    def run_node(given) -> int:
        ran.append(given)
        assert (tmp_path / "x").is_dir()
        return 7

    before = list(logging.getLogger().handlers)
    assert serve(config, run_node) == 7
    logging.getLogger().handlers[:] = before
    assert ran == [config]
