"""A node that cannot start says why in one sentence, and how it ends says what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REAL, SIMULATED
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

CONFIG, UNAVAILABLE = 78, 69
DEADLINE_S = 120


def start(folder, *words):
    """Return how a daemon ended that cannot start, what it said, and that it left no socket."""
    argv = [sys.executable, "-m", "nodeserve.cli.main", "serve", *map(str, words)]
    if "--socket" not in words:
        at = argv.index("--") if "--" in argv else len(argv)
        argv[at:at] = ["--socket", str(folder / "api.sock")]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert "Traceback" not in ended.stdout
    assert [path for path in folder.rglob("*") if path.is_socket()] == []
    return ended.returncode, ended.stderr


def cause(text):
    """Return the sentence behind ``error:`` and the lines of the log that follow it.

    What comes last is where the logs are.
    """
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    sentence, *log, where = lines[at:]
    assert log
    assert all(line.startswith("    | ") for line in log)
    assert where.startswith("logs: ")
    assert any(Path(where.removeprefix("logs: ")).iterdir())
    return sentence, log


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the model, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def no_directory(model):
    shutil.rmtree(model)


def a_file(model):
    shutil.rmtree(model)
    model.write_text("{}")


def no_config(model):
    (model / "config.json").unlink()


def cut_config(model):
    os.truncate(model / "config.json", 40)


def config_of_a_list(model):
    (model / "config.json").write_text("[]")


def unreadable_config(model):
    """Not by its mode, for root reads everything."""
    (model / "config.json").unlink()
    (model / "config.json").mkdir()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (no_directory, "no such directory"),
        (a_file, "is a file; give the directory that holds config.json"),
        (no_config, "holds no config.json"),
        (cut_config, "config.json cannot be read"),
        (config_of_a_list, "holds no JSON object"),
        (unreadable_config, "config.json cannot be read"),
    ],
)
def test_a_model_directory_that_is_none_is_refused_before_anything_starts(
    broken, tmp_path, spoil, what
):
    spoil(broken)
    code, said = start(tmp_path, broken)
    assert code == CONFIG
    [line] = said.splitlines()
    assert line.startswith(f"nodeserve: model {broken}: ")
    assert what in line
    assert not (tmp_path / "api.sock.d").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--", "--no-such-argument", "3"], "`--no-such-argument` is not an argument of vLLM"),
        (["--", "--max-modle-len", "3"], "did you mean `--max-model-len`?"),
        (["--", "--tensor-parallel-size", "2"], "is set by nodeserve"),
        (["--prefill", "2"], "are all prefill: nobody would generate"),
        (["--socket", "/tmp/" + "x" * 120], "the kernel takes socket paths of at most 107"),
    ],
)
def test_a_setting_that_can_never_work_is_refused_in_one_line(tiny_model, tmp_path, words, what):
    code, said = start(tmp_path, tiny_model, *words)
    assert code == CONFIG
    [line] = said.splitlines()
    assert line.startswith("nodeserve: command line: ")
    assert what in line
    assert list(tmp_path.iterdir()) == []


def test_gpus_that_do_not_exist_are_refused_by_their_key(tiny_model, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[[workers]]\nrole = "aggregated"\ngpus = [0, 99]\ntp = 2\n')
    code, said = start(tmp_path, tiny_model, "--config", file)
    assert code == CONFIG
    assert f"{file}: workers[0].gpus" in said
    file.write_text(file.read_text() + '[simulate]\nsystem = "8xh100-sxm"\n')
    code, said = start(tmp_path, tiny_model, "--config", file)
    assert code == CONFIG
    assert f"{file}: workers[0].gpus[1] is 99, this node has GPUs 0 to 7" in said


def test_a_socket_of_another_program_is_refused_and_left_alone(tiny_model, tmp_path):
    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        words = [sys.executable, "-m", "nodeserve.cli.main", "serve", str(tiny_model), *SIMULATED]
        ended = subprocess.run(
            [*words, "--socket", str(path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == CONFIG
        assert f"socket {path}: another program listens there" in ended.stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert taken.accept()


def test_a_socket_that_a_dead_program_left_is_taken_over(tiny_model, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert node.stop() == 0


def test_a_file_in_the_place_of_the_socket_is_refused_and_left_alone(tiny_model, tmp_path):
    (tmp_path / "api.sock").write_text("precious")
    code, said = start(tmp_path, tiny_model, *SIMULATED)
    assert code == CONFIG
    assert "a file that is no socket is there" in said
    assert (tmp_path / "api.sock").read_text() == "precious"


def test_a_gateway_without_a_tokenizer_is_reported_with_the_end_of_its_log(broken, tmp_path):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    code, said = start(tmp_path, broken, *SIMULATED)
    assert code == CONFIG
    sentence, log = cause(said)
    begin = "error: gateway gateway-api failed to start: failed to create chat/text backends: "
    assert sentence.startswith(begin)
    assert "does not contain a supported tokenizer file" in sentence
    assert "does not contain a supported tokenizer file" in log[-1]
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("gateway", "words", "what"),
    [
        ("python", ["--max-model-len", "4096"], "max_model_len (4096) is greater than"),
        ("python", ["--chat-template", "/no/such.jinja"], "/no/such.jinja"),
        ("python", ["--reasoning-parser", "nobody"], "Reasoning parser 'nobody' not found"),
        ("rust", ["--tool-call-parser", "nobody"], "tool parser `nobody` is not registered"),
    ],
)
def test_a_setting_that_a_gateway_refuses_is_one_to_change(
    tiny_model, tmp_path, gateway, words, what
):
    code, said = start(
        tmp_path, tiny_model, "--simulate", "2xh100-sxm", "--gateway", gateway, "--", *words
    )
    sentence, _ = cause(said)
    assert sentence.startswith("error: gateway gateway-api failed to start: ")
    assert what in sentence
    assert code == CONFIG


def cut_weights(model):
    os.truncate(model / "model.safetensors", 100_000)


def other_weights(model):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 512}))


@pytest.mark.parametrize(
    ("spoil", "more", "code", "what"),
    [
        (cut_weights, [], CONFIG, "the weights in {model} are broken: "),
        (other_weights, [], UNAVAILABLE, "vLLM cannot load {model}: The size of tensor a (512)"),
        (None, ["--max-model-len", "4096"], CONFIG, "max_model_len (4096) is greater than"),
    ],
    ids=["cut", "other weights", "too long"],
)
def test_a_model_that_vllm_cannot_load_is_reported_with_cause_and_log(
    broken, tmp_path, spoil, more, code, what
):
    if spoil is not None:
        spoil(broken)
    ended, said = start(tmp_path, broken, "--aggregated", "1", *REAL, *more)
    sentence, log = cause(said)
    assert sentence.startswith("error: worker aggregated-0 failed to start: worker aggregated-0: ")
    assert what.format(model=broken) in sentence
    assert ended == code
    assert len(log) <= 8
    assert (tmp_path / "api.sock.d" / "logs" / "aggregated-0.log").exists()
