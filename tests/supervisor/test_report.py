import signal

import pytest

from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.supervisor.children import Exit
from nodeserve.supervisor.report import explain, first_line, ready_line
from nodeserve.wire.control import ChildFailed
from nodeserve.wire.kinds import Role


def failed(cause, *, retryable):
    return ChildFailed(generation=3, cause=cause, retryable=retryable)


def test_a_failed_process_is_quoted_first_and_its_log_follows():
    why = explain(Exit(78, None), failed("no such model", retryable=False), ["a", "b"])
    assert why.cause == "no such model (exited with code 78)\n    | a\n    | b"
    assert first_line(why.cause) == "no such model (exited with code 78)"
    assert not why.retryable


def test_a_clean_exit_needs_no_log():
    why = explain(Exit(0, None), None, ["error: none"])
    assert (why.cause, why.retryable) == ("exited with code 0", True)
    assert first_line(None) is None


def test_what_a_child_could_not_report_is_found_in_its_log():
    why = explain(Exit(78, None), None, ["loading", "error: listener api: no such template"])
    assert first_line(why.cause) == "listener api: no such template (exited with code 78)"
    assert (why.retryable, why.exit_code) == (False, 78)


def test_a_report_says_more_than_the_log():
    why = explain(Exit(69, None), failed("out of room", retryable=True), ["error: died"])
    assert first_line(why.cause) == "out of room (exited with code 69)"
    assert why.retryable


RUST_LOG = (
    "(RustFrontend pid=1) WARNING disabling image support",
    "(RustFrontend pid=1) ERROR [cmd/src/main.rs:110] process failed with error: {what}",
    "Caused by:",
    "  tool parser `x` is not registered",
    "  at all",
)


@pytest.mark.parametrize(
    ("what", "code"), [("invalid OpenAI frontend configuration", 78), ("cannot bind", 1)]
)
def test_what_the_rust_front_end_ends_with_is_one_sentence(what, code):
    log = [line.format(what=what) for line in RUST_LOG]
    why = explain(Exit(1, None), None, log)
    assert first_line(why.cause) == (
        f"{what}: tool parser `x` is not registered: at all (exited with code 1)"
    )
    assert (why.exit_code, why.retryable) == (code, code != 78)


def test_a_killed_process_has_its_signal_for_a_cause():
    why = explain(Exit(None, signal.SIGSEGV), None, ["so far so good"])
    assert why.cause == "killed by SIGSEGV\n    | so far so good"
    assert (why.retryable, why.exit_code) == (True, 128 + signal.SIGSEGV)


def test_the_ready_line_says_where_and_with_what():
    workers = tuple(
        Worker(name=f"w{place}", role=role)
        for place, role in enumerate([Role.PREFILL, Role.PREFILL, Role.DECODE])
    )
    listeners = (
        Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST),
        Listener(name="tcp", host="127.0.0.1", port=80, gateway=GatewayKind.RUST),
    )
    config = NodeConfig(
        model="/m",
        served_model_names=("m",),
        runtime_dir="/run/d",
        listeners=listeners,
        workers=workers,
    )
    assert ready_line(config, 1.25) == (
        "nodeserve is ready on /run/a.sock, 127.0.0.1:80 after 1.2 s: "
        "m, 2 prefill + 1 decode (vLLM)"
    )
