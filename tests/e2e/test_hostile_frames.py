"""Whatever comes in at an internal socket, nobody crashes and clients are served."""

import signal

import pytest
import zmq

from nodeserve.wire.control import DispatcherStatus
from tests.e2e import hostile
from tests.e2e.conftest import SIMULATED
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

LONG_PROMPT = "Tell me about the river and the hills behind it. " * 8
SUPERVISORS = ("control", "DEALER")
DISPATCHERS = (("engine-in", "DEALER"), ("engine-out", "PUSH"))
KINDS = {"DEALER": zmq.DEALER, "PUSH": zmq.PUSH}
PROBES_S = 45.0
"""Three probes of 5 s that fail, 2 s between them, and 10 s of grace before the kill."""


def internal(node, name):
    """Return the path of an internal socket; the present gateway's for ``gw-in`` and ``gw-out``."""
    folder = node.socket.with_name("api.sock.d")
    if name.startswith("gw-"):
        generation = node.process_named("gateway-api").generation
        name = name.replace("gw-", f"gw-{generation}-")
    return folder / f"{name}.sock"


def counted(node) -> DispatcherStatus:
    requests = node.status().requests
    assert requests is not None
    return requests


def serves(node):
    """Whether a prompt is prefilled, handed over and decoded."""
    before = counted(node).handoffs.completed
    answer = node.complete(f"{before} {LONG_PROMPT}", max_tokens=3, ignore_eos=True)
    node.wait_until(lambda status: status.requests.handoffs.completed == before + 1)
    return answer["usage"]["completion_tokens"] == 3


def processes(node):
    """Return what must not change: who runs, and as which process."""
    return {process.name: (process.pid, process.state) for process in node.status().processes}


@pytest.mark.parametrize(("name", "kind"), DISPATCHERS)
def test_garbage_on_the_dispatchers_sockets_is_dropped_and_counted(simulated, name, kind):
    before, rejected = processes(simulated), counted(simulated).rejected_frames
    hostile.send_garbage(internal(simulated, name), KINDS[kind])
    expected = rejected + len(hostile.GARBAGE)
    simulated.wait_until(lambda status: status.requests.rejected_frames == expected)
    assert serves(simulated)
    assert processes(simulated) == before


@pytest.mark.parametrize(("name", "kind"), [SUPERVISORS, *DISPATCHERS])
def test_bytes_that_are_no_messages_cost_only_their_connection(simulated, name, kind):
    before = processes(simulated)
    path = internal(simulated, name)
    hostile.send_garbage(path, KINDS[kind])
    hostile.send_raw_bytes(path)
    hostile.send_half_a_message(path, kind)
    hostile.announce_too_much(path, kind)
    assert serves(simulated)
    assert processes(simulated) == before


def test_a_stream_goes_on_while_all_internal_sockets_are_attacked(simulated):
    before = processes(simulated)
    body = {"model": simulated.model, "prompt": LONG_PROMPT, "max_tokens": 1500, "stream": True}
    with simulated.client.stream(
        "POST", "/v1/completions", json={**body, "ignore_eos": True}
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        for name, kind in (SUPERVISORS, *DISPATCHERS):
            hostile.send_garbage(internal(simulated, name), KINDS[kind])
            hostile.send_raw_bytes(internal(simulated, name))
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
    assert '"finish_reason":"length"' in "".join(rest)
    assert processes(simulated) == before


@pytest.mark.parametrize("name", ["control", "engine-in", "engine-out", "gw-in", "gw-out"])
def test_idle_connections_keep_nobody_out(simulated, name):
    before = processes(simulated)
    idle = hostile.idle_connections(internal(simulated, name), 50)
    try:
        assert serves(simulated)
        assert processes(simulated) == before
    finally:
        for client in idle:
            client.close()


def test_garbage_to_a_gateways_inbox_costs_nothing(simulated):
    before = processes(simulated)
    path = internal(simulated, "gw-in")
    hostile.send_garbage(path, zmq.DEALER)
    hostile.send_raw_bytes(path)
    hostile.send_half_a_message(path, "DEALER")
    assert serves(simulated)
    assert processes(simulated) == before


@pytest.mark.parametrize("gateway", ["rust", "python"])
def test_a_gateway_that_garbage_has_broken_is_replaced(tiny_model, tmp_path, gateway):
    """Either front end gives up its engine for good at one message that it cannot read."""
    words = (*SIMULATED[:2], "--gateway", gateway, "--speedup", "20")
    with daemon(tmp_path, str(tiny_model), *words) as node:
        node.wait_ready()
        before = processes(node)
        hostile.send_garbage(internal(node, "gw-out"), zmq.PUSH)
        wait_for_another_gateway(node, before["gateway-api"][0])
        assert serves(node)
        after = processes(node)
        assert {name for name in after if after[name] != before[name]} == {"gateway-api"}
        assert node.stop() == 0


def test_a_gateway_that_hangs_is_replaced_and_the_next_one_serves_who_waited(simulated):
    before = processes(simulated)
    pid = simulated.kill("gateway-api", signal.SIGSTOP)
    simulated.client.timeout = PROBES_S
    answer = simulated.complete("hello", max_tokens=2)  # waits in the listen queue
    assert answer["usage"]["completion_tokens"] == 2
    assert gone(pid)
    wait_for_another_gateway(simulated, pid)
    assert serves(simulated)
    after = processes(simulated)
    assert {name for name in after if after[name] != before[name]} == {"gateway-api"}


def wait_for_another_gateway(node, pid):
    node.wait_until(
        lambda status: any(
            process.name == "gateway-api" and process.state == "ready" and process.pid != pid
            for process in status.processes
        )
    )
