import os

import pytest

from nodeserve.config.model import default_names, find_model
from nodeserve.errors import ConfigError
from tests.config.conftest import write_model


def test_a_directory_is_read(tmp_path):
    path = write_model(tmp_path / "m", vision_config={}, is_encoder_decoder=False)
    facts = find_model(str(path), {})
    assert facts.path == str(path)
    assert facts.architectures == ("LlamaForCausalLM",)
    assert facts.keys == ("architectures", "vision_config")


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    write_model(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    facts = find_model("m/", {})
    assert facts.path == str(tmp_path / "m")
    assert default_names(facts) == ("m",)


def test_a_directory_goes_by_its_own_name_and_by_its_path(tmp_path):
    path = write_model(tmp_path / "Llama-3")
    assert default_names(find_model(str(path), {})) == ("Llama-3", str(path))


def test_a_name_of_the_hub_is_found_in_the_cache(tmp_path):
    repository = tmp_path / "hub" / "models--org--m"
    snapshot = write_model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    facts = find_model("org/m", {"HF_HOME": str(tmp_path)})
    assert facts.path == str(snapshot)
    assert default_names(facts) == ("org/m",)


def test_a_name_that_is_not_in_the_cache_says_how_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match="run `hf download org/m` first"):
        find_model("org/m", {"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such directory"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "holds no config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "cannot be read"),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_bytes(b"\xff")),
            "cannot be read",
        ),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("[]")), "no JSON object"),
        (lambda path: (path.mkdir(), (path / "config.json").mkdir()), "cannot be read"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, make, what):
    make(tmp_path / "m")
    with pytest.raises(ConfigError, match=what):
        find_model(str(tmp_path / "m"), {})


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_model_names_the_reader(tmp_path):
    path = write_model(tmp_path / "m")
    (path / "config.json").chmod(0)
    with pytest.raises(ConfigError, match=f"uid {os.getuid()} may not read"):
        find_model(str(path), {})
