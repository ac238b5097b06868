import pytest

from nodeserve.wire.control import CommandReply, RestartRequest


@pytest.mark.parametrize(("words", "immediately"), [([], False), (["--now"], True)])
def test_a_worker_restarts(daemon, run, words, immediately):
    daemon.answers = [CommandReply(detail="decode-0 is ready, generation 5")]
    result = run("restart", "decode-0", *words, "--socket", daemon.socket)
    assert result.output == "decode-0 is ready, generation 5\n"
    assert daemon.heard == [RestartRequest(worker="decode-0", immediately=immediately)]
