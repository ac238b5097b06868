import pytest

from nodeserve.cli import reload
from nodeserve.wire.control import CommandReply, ReloadRequest, StatusRequest
from tests.cli.conftest import a_status

RELOADED = CommandReply(detail="reloaded: nodeserve 0.1.0")


@pytest.fixture(autouse=True)
def _impatience(monkeypatch):
    monkeypatch.setattr(reload, "LOOK_EVERY_S", 0.01)


def test_a_reload_says_what_came_of_it(daemon, run):
    daemon.answers = [RELOADED, a_status()]
    result = run("reload", "--socket", daemon.socket)
    assert result.output == "reloaded: nodeserve 0.1.0\n"
    assert daemon.heard == [ReloadRequest(), StatusRequest()]


def test_it_waits_until_nobody_starts_anew_and_tells_of_each(daemon, run):
    daemon.answers = [
        RELOADED,
        a_status(reloading=("decode-0", "decode-1", "gateway-api")),
        a_status(reloading=("decode-1", "gateway-api"), detail="decode-1 is draining"),
        a_status(),
    ]
    result = run("reload", "--socket", daemon.socket)
    assert result.exit_code == 0
    assert result.output.splitlines()[1:] == [
        "decode-0 done, 2 to go",
        "decode-1, gateway-api done, 0 to go",
    ]


def test_who_does_not_come_back_is_an_error(daemon, run):
    failed = a_status(
        state="degraded", detail="decode-0 is backoff", reload_halted="decode-0", reloading=()
    )
    daemon.answers = [RELOADED, a_status(reloading=("decode-0", "decode-1")), failed]
    result = run("reload", "--socket", daemon.socket)
    assert result.exit_code == 69
    assert "decode-0 did not come back, so the rest runs as before; decode-0 is" in result.output
    assert "done" not in result.output


def test_its_patience_ends_and_the_reload_goes_on(daemon, run):
    daemon.answers = [RELOADED, a_status(reloading=("decode-0",))]
    result = run("reload", "--timeout", 0.3, "--socket", daemon.socket)
    assert result.exit_code == 69
    assert "decode-0 not done in time; that goes on by itself" in result.output


def test_nobody_has_to_wait(daemon, run):
    daemon.answers = [RELOADED, a_status(reloading=("decode-0",))]
    assert run("reload", "--no-wait", "--socket", daemon.socket).exit_code == 0
    assert daemon.heard == [ReloadRequest()]


def test_ctrl_c_ends_the_waiting_alone(daemon, run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    daemon.answers = [RELOADED]
    monkeypatch.setattr(reload, "wait_until_done", interrupt)
    result = run("reload", "--socket", daemon.socket)
    assert result.exit_code == 130
    assert "that goes on by itself: see `nodeserve status`" in result.output


def test_a_dry_run_is_asked_for(daemon, run):
    daemon.answers = [CommandReply(detail="nothing would change")]
    assert run("reload", "--dry-run", "--socket", daemon.socket).exit_code == 0
    assert daemon.heard == [ReloadRequest(dry_run=True)]


def test_a_refused_reload_ends_with_the_code_of_its_cause(daemon, run):
    daemon.answers = [CommandReply(error="reload refused: x", exit_code=78)]
    result = run("reload", "--socket", daemon.socket)
    assert (result.exit_code, "reload refused: x" in result.output) == (78, True)
