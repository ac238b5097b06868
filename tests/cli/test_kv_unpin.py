import pytest

from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvUnpin


@pytest.mark.parametrize(("word", "key"), [("ab12", "ab12"), ("--all", None)])
def test_prefixes_are_unpinned(daemon, run, word, key):
    daemon.answers = [CommandReply(detail="done")]
    assert run("kv", "unpin", word, "--socket", daemon.socket).output == "done\n"
    assert daemon.heard == [KvUnpin(key=key)]


@pytest.mark.parametrize("words", [[], ["ab12", "--all"]])
def test_one_of_both_must_be_said(run, words):
    result = run("kv", "unpin", *words)
    assert result.exit_code == 2
    assert "name a PREFIX" in result.stderr
