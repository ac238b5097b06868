import click
import pytest

from nodeserve.cli import drain, restart, role
from tests.cli.conftest import a_status


def offered(command, socket, incomplete):
    ctx = click.Context(command)
    ctx.params = {"socket": str(socket), "runtime_dir": None}
    worker = next(param for param in command.params if param.name == "worker")
    return [(item.value, item.help) for item in worker.shell_complete(ctx, incomplete)]


@pytest.mark.parametrize("module", [drain, restart, role])
def test_the_workers_of_the_running_node_are_offered(daemon, module):
    daemon.answers = [a_status()]
    assert offered(module.command, daemon.socket, "") == [
        ("decode-0", "decode, ready"),
        ("prefill-0", "prefill, failed"),
    ]
    assert [name for name, _ in offered(module.command, daemon.socket, "de")] == ["decode-0"]


def test_without_a_node_nothing_is_offered_and_nothing_said(tmp_path, capsys):
    assert offered(drain.command, tmp_path / "none.sock", "") == []
    assert capsys.readouterr() == ("", "")
