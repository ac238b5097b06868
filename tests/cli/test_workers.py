import click
import msgspec
import pytest

from nodeserve.cli import drain, restart, role
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.status import ProcessStatus
from tests.cli.conftest import a_status


def offered(command, socket, incomplete):
    ctx = click.Context(command)
    ctx.params = {"socket": str(socket), "runtime_dir": None}
    worker = next(param for param in command.params if isinstance(param, click.Argument))
    return [(item.value, item.help) for item in worker.shell_complete(ctx, incomplete)]


@pytest.mark.parametrize("module", [drain, role])
def test_the_workers_of_the_running_node_are_offered(daemon, module):
    daemon.answers = [a_status()]
    assert offered(module.command, daemon.socket, "") == [
        ("decode-0", "decode, ready"),
        ("prefill-0", "prefill, failed"),
    ]
    assert [name for name, _ in offered(module.command, daemon.socket, "de")] == ["decode-0"]


def test_whatever_can_be_started_anew_is_offered_to_be_restarted(daemon):
    status = a_status()
    dispatcher = ProcessStatus(
        name="dispatcher", kind=ProcessKind.DISPATCHER, state="failed", generation=2
    )
    processes = (dispatcher, *status.processes)
    daemon.answers = [msgspec.structs.replace(status, processes=processes)]
    assert offered(restart.command, daemon.socket, "") == [
        ("dispatcher", "dispatcher, failed"),
        ("decode-0", "decode, ready"),
        ("prefill-0", "prefill, failed"),
    ]


def test_without_a_node_nothing_is_offered_and_nothing_said(tmp_path, capsys):
    assert offered(drain.command, tmp_path / "none.sock", "") == []
    assert capsys.readouterr() == ("", "")
