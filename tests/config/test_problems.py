import pytest

from nodeserve.config.problems import Problems, nearest
from nodeserve.errors import ConfigError


def test_all_problems_are_raised_together_with_their_sources():
    problems = Problems("a.toml")
    problems.add("x", "is 1")
    problems.of("command line").add("--y", "is 2")
    with pytest.raises(ConfigError, match=r"^a.toml: x is 1\ncommand line: --y is 2$"):
        problems.raise_if_any()


def test_no_problem_raises_nothing():
    problems = Problems("a.toml")
    problems.of("b").warn("look")
    problems.raise_if_any()
    assert problems.warnings == ["look"]


def test_a_key_is_known_to_have_a_problem():
    problems = Problems("a.toml")
    problems.add("x.y", "is 1")
    assert (problems.has("x.y"), problems.has("x")) == (True, False)


def test_only_near_names_are_suggested():
    assert nearest("modle", ["model", "socket"]) == " (did you mean `model`?)"
    assert nearest("zebra", ["model", "socket"]) == ""
