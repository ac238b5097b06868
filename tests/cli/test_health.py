import pytest

from tests.cli.conftest import a_status


@pytest.mark.parametrize(
    ("state", "detail", "line"),
    [("ready", None, "ready"), ("degraded", "w-1 is failed", "degraded: w-1 is failed")],
)
def test_a_node_that_serves_is_healthy(daemon, run, state, detail, line):
    daemon.answers = [a_status(state=state, detail=detail)]
    result = run("health", "--socket", daemon.socket)
    assert (result.exit_code, result.stdout) == (0, f"{line}\n")


@pytest.mark.parametrize("state", ["starting", "unavailable", "draining", "stopping"])
def test_a_node_that_takes_no_requests_is_not(daemon, run, state):
    daemon.answers = [a_status(state=state, detail="no worker decodes")]
    result = run("health", "--socket", daemon.socket)
    assert (result.exit_code, result.stdout) == (69, "")
    assert f"the node is {state}: no worker decodes" in result.stderr


def test_no_node_is_not_healthy(tmp_path, run):
    assert run("health", "--socket", tmp_path / "none.sock").exit_code == 69
