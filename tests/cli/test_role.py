from nodeserve.wire.control import CommandReply, RoleRequest
from nodeserve.wire.kinds import Role


def test_a_worker_changes_its_role(daemon, run):
    daemon.answers = [CommandReply(detail="decode-0 is now used for prefill")]
    result = run("role", "decode-0", "prefill", "--socket", daemon.socket)
    assert result.output == "decode-0 is now used for prefill\n"
    assert daemon.heard == [RoleRequest(worker="decode-0", role=Role.PREFILL)]


def test_the_last_worker_of_its_role_can_be_forced(daemon, run):
    daemon.answers = [CommandReply(detail="decode-0 is now used for prefill")]
    run("role", "decode-0", "prefill", "--force", "--socket", daemon.socket)
    assert daemon.heard == [RoleRequest(worker="decode-0", role=Role.PREFILL, force=True)]


def test_an_unknown_role_is_wrong_usage(run):
    assert run("role", "decode-0", "context").exit_code == 2
