import pytest

from nodeserve.wire.control import CommandReply, DrainRequest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decode-0"], DrainRequest(worker="decode-0")),
        (["decode-0", "--force"], DrainRequest(worker="decode-0", force=True)),
        (["--node"], DrainRequest()),
    ],
)
def test_a_worker_or_the_node_drains(daemon, run, words, message):
    daemon.answers = [CommandReply(detail="it drains")]
    result = run("drain", *words, "--socket", daemon.socket)
    assert (result.exit_code, result.output, daemon.heard) == (0, "it drains\n", [message])


@pytest.mark.parametrize("words", [[], ["decode-0", "--node"]])
def test_what_drains_is_named_once(run, words):
    result = run("drain", *words)
    assert result.exit_code == 2
    assert "name one WORKER, or give --node" in result.stderr


def test_an_unknown_worker_is_the_daemons_answer(daemon, run):
    daemon.answers = [CommandReply(error="no worker decode-9; there are decode-0", exit_code=65)]
    result = run("drain", "decode-9", "--socket", daemon.socket)
    assert result.exit_code == 65
    assert result.stderr == "nodeserve: no worker decode-9; there are decode-0\n"
