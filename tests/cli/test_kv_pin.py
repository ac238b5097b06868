from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvPin


def test_a_prefix_is_pinned(daemon, run):
    daemon.answers = [CommandReply(detail="ab12: 3 blocks are pinned")]
    result = run("kv", "pin", "ab12", "--socket", daemon.socket)
    assert result.output == "ab12: 3 blocks are pinned\n"
    assert daemon.heard == [KvPin(key="ab12")]


def test_a_prefix_that_is_not_there_is_refused(daemon, run):
    daemon.answers = [CommandReply(error="nothing begins with ff", exit_code=65)]
    result = run("kv", "pin", "ff", "--socket", daemon.socket)
    assert (result.exit_code, result.stderr) == (65, "nodeserve: nothing begins with ff\n")
