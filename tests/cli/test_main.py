import subprocess
import sys
from pathlib import Path

import click
import pytest

from nodeserve.cli.main import COMMANDS, LazyGroup
from nodeserve.errors import CapacityError, ConfigError, InvariantError, PeerError, RequestError

ROOT = Path(__file__).parents[2]


def test_the_help_names_every_command(run):
    shown = run("--help").output
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "  78   a setting can never work" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_starts_as_announced(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {name}")


@pytest.mark.parametrize(
    "error", [ConfigError, CapacityError, PeerError, InvariantError, RequestError]
)
def test_a_deliberate_error_is_a_message_and_an_exit_code(error, monkeypatch, run):
    @click.command("failing")
    def failing() -> None:
        raise error("who: what; what to do\nsecond problem")

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: failing)
    result = run("status")
    assert result.exit_code == error.exit_code
    assert result.stderr == "nodeserve: who: what; what to do\nnodeserve: second problem\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (ZeroDivisionError("by 0"), 70, "this is a bug in nodeserve: please report it"),
        (click.UsageError("name one"), 2, "name one"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_other_end_has_its_exit_code_too(error, code, said, monkeypatch, run):
    @click.command("failing")
    def failing() -> None:
        raise error

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: failing)
    result = run("status")
    assert result.exit_code == code
    assert said in result.stderr
    assert ("Traceback" in result.stderr) is (code == 70)


def test_an_unknown_command_is_wrong_usage(run):
    result = run("sevre")
    assert result.exit_code == 2
    assert "sevre" in result.stderr


def test_the_version_names_both_releases(run):
    lines = run("--version").output.splitlines()
    assert lines[0].startswith("nodeserve ")
    assert lines[1].startswith("vLLM ")


def test_completion_offers_commands_without_importing_them():
    code = (
        "import sys; from nodeserve.cli.main import cli; import click;"
        "items = cli.shell_complete(click.Context(cli), 's');"
        "assert [item.value for item in items] == ['serve', 'status'], items;"
        "sys.exit(any(name.startswith('nodeserve.cli.s') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from nodeserve.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'zmq', 'openai', 'torch', 'vllm', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0
