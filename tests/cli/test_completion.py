import pytest


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
