import pytest

from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvClear


@pytest.mark.parametrize(("words", "listener"), [([], None), (["--listener", "batch"], "batch")])
def test_tiers_are_cleared(daemon, run, words, listener):
    daemon.answers = [CommandReply(detail="12 blocks are forgotten")]
    result = run("kv", "clear", *words, "--socket", daemon.socket)
    assert result.output == "12 blocks are forgotten\n"
    assert daemon.heard == [KvClear(listener=listener)]
