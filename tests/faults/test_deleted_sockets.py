"""Socket files that somebody deletes come back; who is connected does not notice."""

import subprocess
import sys
import threading

import pytest

from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


def are_there(paths):
    pause = threading.Event()
    return any(all(path.exists() for path in paths) or pause.wait(0.02) for _ in range(500))


def second_names(node):
    return node.socket.parent / "api.sock.d" / "kept"


def test_internal_sockets_come_back_and_streams_go_on_meanwhile(node):
    node.complete("hello", max_tokens=2)
    paths = list((node.socket.parent / "api.sock.d").glob("*.sock"))
    assert {"control.sock", "engine-in.sock", "engine-out.sock"} <= {path.name for path in paths}
    streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    wanted = [path for path in paths if not path.name.startswith("gw-")]
    assert are_there([second_names(node) / path.stem for path in wanted])
    before = {p.name: (p.generation, p.restarts) for p in node.status().processes}
    for path in paths:
        path.unlink()
    assert are_there(wanted)
    assert {stream.end()[1] for stream in streams} == {"length"}
    after = {p.name: (p.generation, p.restarts) for p in node.status().processes}
    assert after == before
    for name in ("decode-0", "gateway-api"):  # each finds its way in
        generation = node.process_named(name).generation
        assert gone(node.kill(name))
        node.wait_until(
            lambda status, name=name, generation=generation: any(
                p.name == name and p.state == "ready" and p.generation > generation
                for p in status.processes
            )
        )
    assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_client_socket_comes_back_with_its_mode_and_cuts_no_stream(node):
    streams = [Stream(node, node.model, prompt, max_tokens=60) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    assert are_there([second_names(node) / "listener-api"])
    mode = node.socket.stat().st_mode
    node.socket.unlink()
    assert are_there([node.socket])
    assert node.socket.stat().st_mode == mode
    assert {stream.end()[1] for stream in streams} == {"length"}
    assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
    argv = [sys.executable, "-m", "nodeserve.cli.main", "doctor", "--socket", str(node.socket)]
    assert (
        "a node is ready there"
        in subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout
    )
