import pytest
from click.shell_completion import BashComplete

from nodeserve.cli.main import cli


@pytest.mark.parametrize(
    ("shell", "what"),
    [
        ("bash", "-o nosort"),
        ("zsh", "#compdef nodeserve"),
        ("fish", "complete --no-files"),
    ],
)
def test_each_shell_gets_its_script(run, shell, what):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert what in result.output
    assert "_NODESERVE_COMPLETE" in result.output


def test_other_shells_are_wrong_usage(run):
    assert run("completion", "csh").exit_code == 2


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ser"], {"serve"}),
        (["serve", "--gateway"], {"python", "rust"}),
        (["serve", "--tp"], {"--tp-prefill", "--tp-decode"}),
        (["role", "decode-0"], {"prefill", "decode", "aggregated"}),
    ],
)
def test_commands_options_and_choices_are_offered(words, offered):
    *before, last = words if words[-1] in {"ser", "--tp"} else [*words, ""]
    found = BashComplete(cli, {}, "nodeserve", "_NODESERVE_COMPLETE").get_completions(before, last)
    assert {item.value for item in found} == offered


@pytest.mark.parametrize("words", [["serve"], ["serve", "--config"], ["status", "--socket"]])
def test_where_a_path_is_wanted_the_shell_offers_its_own(words):
    found = BashComplete(cli, {}, "nodeserve", "_NODESERVE_COMPLETE").get_completions(words, "/x")
    assert [item.type for item in found] == ["file"]


def test_the_help_has_a_line_for_each_shell(run):
    lines = run("completion", "--help").output.splitlines()
    shown = [line.split()[0] for line in lines if ": " in line and " completion " in line]
    assert shown[-3:] == ["bash:", "zsh:", "fish:"]
