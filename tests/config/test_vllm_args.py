import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from nodeserve.config.problems import Problems
from nodeserve.config.vllm_args import (
    check_args,
    known_args,
    parse_command_line,
    split_parts,
    to_command_line,
)


def parsed(*tokens):
    problems = Problems("command line")
    args = parse_command_line(tokens, problems)
    assert problems.errors == []
    return args


def refused(*tokens):
    problems = Problems("command line")
    parse_command_line(tokens, problems)
    [error] = problems.errors
    return error


@pytest.mark.parametrize(
    ("tokens", "args"),
    [
        (("--max-model-len", "4096"), {"max_model_len": 4096}),
        (("--max-model-len=4k",), {"max_model_len": 4000}),
        (("--max_model_len", "4K"), {"max_model_len": 4096}),
        (("--max-model-len", "auto"), {"max_model_len": "auto"}),
        (("--dtype", "float32", "--seed", "-1"), {"dtype": "float32", "seed": -1}),
        (("--revision", "1234"), {"revision": "1234"}),
        (("--gpu-memory-utilization", "0.9"), {"gpu_memory_utilization": 0.9}),
        (("--device-memory-utilization", "1"), {"gpu_memory_utilization": 1.0}),
        (
            ("--enforce-eager", "--no-enable-prefix-caching"),
            {"enforce_eager": True, "enable_prefix_caching": False},
        ),
        (("-q", "fp8"), {"quantization": "fp8"}),
        (("--hf-overrides", '{"a": 1}'), {"hf_overrides": {"a": 1}}),
        (
            ("--compilation-config.mode", "3", "--compilation-config.x.y", "z"),
            {"compilation_config": {"mode": 3, "x": {"y": "z"}}},
        ),
        (
            ("--cudagraph-capture-sizes", "1", "2", "--seed", "3"),
            {"cudagraph_capture_sizes": [1, 2], "seed": 3},
        ),
        (("--middleware", "a", "--middleware", "b"), {"middleware": ["a", "b"]}),
        (("--seed", "1", "--seed", "2"), {"seed": 2}),
        ((), {}),
    ],
)
def test_options_are_read_as_vllm_reads_them(tokens, args):
    assert parsed(*tokens) == args


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (("--max-model-length", "1"), "did you mean `--max-model-len`?"),
        (("--max-model-len", "many"), "vLLM expects an integer such as 8192 or 8k"),
        (("--max-model-len",), "needs a value"),
        (("--seed", "1", "2"), "takes one value, but 2 follow"),
        (("--enforce-eager", "yes"), "takes no value, but `yes` follows it"),
        (("--hf-overrides", "{"), "vLLM expects a JSON object"),
        (("stray",), "`stray` is not an argument of vLLM"),
        (("--headless",), "is set by nodeserve"),
    ],
)
def test_options_that_vllm_would_refuse_are_refused(tokens, what):
    assert what in refused(*tokens)


@pytest.mark.parametrize(
    ("name", "value", "ok"),
    [
        ("max_model_len", 4096, True),
        ("max_model_len", "auto", True),
        ("max_model_len", "4k", False),
        ("max_model_len", True, False),
        ("enforce_eager", True, True),
        ("enforce_eager", 1, False),
        ("gpu_memory_utilization", 1, True),
        ("gpu_memory_utilization", "1", False),
        ("cudagraph_capture_sizes", [1, 2], True),
        ("cudagraph_capture_sizes", 1, False),
        ("cudagraph_capture_sizes", ["1"], False),
        ("hf_overrides", {"a": 1}, True),
        ("dtype", "float32", True),
        ("dtype", 32, False),
        ("dtype", None, True),
    ],
)
def test_values_in_a_file_have_the_type_that_vllm_takes(name, value, ok):
    problems = Problems("config.toml")
    check_args({name: value}, "engine.args", problems)
    assert (problems.errors == []) is ok


def test_engine_and_front_end_arguments_are_told_apart():
    assert split_parts({"max_model_len": 1, "chat_template": "x"}) == (
        {"max_model_len": 1},
        {"chat_template": "x"},
    )


def test_written_options_are_read_again():
    args = {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": 4096,
        "hf_overrides": {"a": [1, "b"]},
        "middleware": ["a", "b"],
        "allowed_origins": ["*"],
        "chat_template": "{{ x }}",
    }
    assert parsed(*to_command_line({**args, "dtype": None})) == args


def test_no_option_of_the_table_has_two_meanings():
    options = [option for arg in known_args().values() for option in arg.aliases]
    assert len(options) == len(set(options))


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm(tmp_path):
    root = Path(__file__).parents[2]
    script = root / "tests" / "config" / "vllm_args_table.py"
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=120,
    )
    found = done.stdout[done.stdout.index("name,part") :].strip().splitlines()
    kept = files("nodeserve.config").joinpath("vllm_args.csv").read_text().strip().splitlines()
    assert found == kept, f"run {script.relative_to(root)} and keep what it prints"
