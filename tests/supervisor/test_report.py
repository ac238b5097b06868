from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.supervisor.children import Exit
from nodeserve.supervisor.report import cause_of_exit, first_line, ready_line
from nodeserve.wire.kinds import Role


def test_a_failed_process_is_quoted_first_and_its_log_follows():
    cause = cause_of_exit(Exit(78, None), "no such model", ["a", "b"])
    assert cause == "no such model (exited with code 78)\n    | a\n    | b"
    assert first_line(cause) == "no such model (exited with code 78)"


def test_a_clean_exit_needs_no_log():
    assert cause_of_exit(Exit(0, None), None, ["a"]) == "exited with code 0"
    assert first_line(None) is None


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
