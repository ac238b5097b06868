from nodeserve.wire.control import CommandReply, ReloadRequest


def test_a_reload_says_what_came_of_it(daemon, run):
    daemon.answers = [CommandReply(detail="reloaded: nodeserve 0.1.0")]
    result = run("reload", "--socket", daemon.socket)
    assert result.output == "reloaded: nodeserve 0.1.0\n"
    assert daemon.heard == [ReloadRequest()]


def test_a_dry_run_is_asked_for(daemon, run):
    daemon.answers = [CommandReply(detail="nothing would change")]
    assert run("reload", "--dry-run", "--socket", daemon.socket).exit_code == 0
    assert daemon.heard == [ReloadRequest(dry_run=True)]


def test_a_refused_reload_ends_with_the_code_of_its_cause(daemon, run):
    daemon.answers = [CommandReply(error="reload refused: x", exit_code=78)]
    result = run("reload", "--socket", daemon.socket)
    assert (result.exit_code, "reload refused: x" in result.output) == (78, True)
