"""A node from start to end, as an operator sees it; simulated engines, everything else real."""

import contextlib
import os
import signal
import threading
from pathlib import Path

import httpx
import pytest
import zmq

from nodeserve.wire import control
from nodeserve.wire.control import DrainRequest, RestartRequest, RoleRequest
from nodeserve.wire.kinds import Role
from tests.e2e.conftest import SIMULATED
from tests.support.daemon import Daemon, daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

LONG_PROMPT = "Tell me about the river and the hills behind it. " * 8


def state_of(status, name):
    return next(process.state for process in status.processes if process.name == name)


def shared_memory():
    """What a vLLM that dies badly leaves behind; semaphores of other programs come and go."""
    return {path for path in Path("/dev/shm").iterdir() if path.name.startswith(("psm_", "vllm"))}


def test_a_drained_node_leaves_nothing_behind(tiny_model, tmp_path):
    before = shared_memory()
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        assert node.complete(LONG_PROMPT, max_tokens=4)["usage"]["completion_tokens"] == 4
        pids = node.pids()
        assert node.stop() == 0
    assert all(gone(pid, 1) for pid in pids)
    assert list(tmp_path.iterdir()) == []
    assert shared_memory() <= before


@pytest.mark.parametrize("gateway", ["rust", "python"])
def test_a_request_in_flight_is_finished_before_the_node_ends(tiny_model, tmp_path, gateway):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--gateway", gateway) as node:
        node.wait_ready()
        answers = []
        name = node.model
        body = {"model": name, "prompt": LONG_PROMPT, "max_tokens": 300, "ignore_eos": True}
        asking = threading.Thread(
            target=lambda: answers.append(node.client.post("/v1/completions", json=body))
        )
        asking.start()
        node.wait_until(lambda status: status.requests.running_requests == 1)
        assert node.stop() == 0
        asking.join(30)
        assert answers[0].json()["usage"]["completion_tokens"] == 300


def test_a_second_sigterm_stops_at_once(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.01") as node:
        node.wait_ready()
        body = {"model": node.model, "prompt": LONG_PROMPT, "max_tokens": 300}

        def ask():
            with pytest.raises(httpx.HTTPError):
                node.client.post("/v1/completions", json=body)

        asking = threading.Thread(target=ask)
        asking.start()
        node.wait_until(lambda status: status.requests.running_requests == 1)
        pids = node.pids()
        node.process.terminate()
        node.wait_for_line("node_draining")
        node.process.terminate()
        assert node.process.wait(10) == 0
        asking.join(30)
    assert all(gone(pid, 1) for pid in pids)
    assert list(tmp_path.iterdir()) == []


def test_when_the_supervisor_is_killed_nobody_is_left_and_the_next_takes_over(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        pids = node.pids()
        node.process.kill()
        assert all(gone(pid) for pid in pids)
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert node.stop() == 0


def test_a_second_daemon_on_the_socket_is_refused_and_the_first_untouched(simulated, tiny_model):
    second = Daemon(simulated.socket, [str(tiny_model), *SIMULATED])
    try:
        assert second.process.wait(30) == 78
        second.wait_for_line(f"already running, pid {simulated.process.pid}")
    finally:
        second.close()
    assert simulated.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_killed_worker_comes_back_as_another_generation(simulated):
    before = simulated.process_named("decode-1").generation
    simulated.kill("decode-1")
    status = simulated.wait_until(
        lambda status: (
            state_of(status, "decode-1") == "ready"
            and next(p for p in status.processes if p.name == "decode-1").generation > before
        )
    )
    assert status.state == "ready"
    assert next(p for p in status.processes if p.name == "decode-1").restarts == 1


def test_a_prompt_survives_the_death_of_its_prefill_worker(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.02") as node:
        node.wait_ready()
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(node.complete(LONG_PROMPT, max_tokens=2))
        )
        asking.start()
        status = node.wait_until(
            lambda status: any(
                load.role is Role.PREFILL and load.queued_prefill_tokens
                for load in status.requests.workers
            )
        )
        busy = next(load for load in status.requests.workers if load.queued_prefill_tokens)
        name = next(p.name for p in status.processes if p.generation == busy.generation)
        node.kill(name)
        asking.join(60)
        assert answers[0]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("name", ["gateway-api", "dispatcher"])
def test_the_socket_stays_open_while_the_front_restarts(simulated, name):
    old = simulated.kill(name)
    assert gone(old)
    answer = simulated.complete("hello there", max_tokens=2)  # waits in the listen queue
    assert answer["usage"]["completion_tokens"] == 2
    simulated.wait_until(lambda status: status.state == "ready")


def test_a_role_changes_under_load_without_losing_a_request(simulated):
    generations = {p.name: p.generation for p in simulated.status().processes}
    model, lost = simulated.model, []

    def ask(number):
        body = {"model": model, "prompt": f"{number} {LONG_PROMPT}", "max_tokens": 8}
        body["ignore_eos"] = True
        response = simulated.client.post("/v1/completions", json=body)
        if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != 8:
            lost.append(response.text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for place, thread in enumerate(threads):
        thread.start()
        if place == 20:
            role = RoleRequest(worker="decode-0", role=Role.PREFILL)
            assert simulated.command(role).error is None
        if place == 40:
            role = RoleRequest(worker="prefill-0", role=Role.DECODE)
            assert simulated.command(role).error is None
    for thread in threads:
        thread.join(60)
    assert lost == []
    assert {p.name: p.generation for p in simulated.status().processes} == generations
    assert simulated.process_named("decode-0").role is Role.PREFILL


def test_draining_and_restarting_a_worker_by_hand(simulated):
    before = simulated.process_named("decode-0").generation
    assert simulated.command(DrainRequest(worker="decode-0")).error is None
    assert simulated.process_named("decode-0").state == "down"
    assert simulated.complete(LONG_PROMPT, max_tokens=2)["usage"]["completion_tokens"] == 2
    assert simulated.command(RestartRequest(worker="decode-0")).error is None
    after = simulated.process_named("decode-0")
    assert (after.state, after.generation > before) == ("ready", True)
    assert after.restarts == 1


def test_the_last_worker_of_a_role_is_drained_by_force_only_and_the_state_tells(simulated):
    assert simulated.command(DrainRequest(worker="decode-0")).error is None
    assert simulated.status().state == "ready"
    refused = simulated.command(DrainRequest(worker="decode-1"))
    assert "decode-1 is the last one that decodes" in refused.error
    assert refused.exit_code == 65
    assert "already" in simulated.command(DrainRequest(worker="decode-0")).detail
    assert simulated.command(DrainRequest(worker="decode-1", force=True)).error is None
    status = simulated.status()
    assert (status.state, status.detail) == ("degraded", "no worker decodes")
    assert simulated.complete(LONG_PROMPT, max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_worker_that_does_not_exist_is_refused_by_name(simulated):
    reply = simulated.command(DrainRequest(worker="decode-9"))
    assert "decode-9 does not exist" in reply.error
    assert "decode-0" in reply.error


def test_a_worker_that_cannot_start_is_reported_with_its_cause_and_log(tiny_model, tmp_path):
    words = [str(tiny_model), *SIMULATED, "--", "--max-model-len", "100000000"]
    with daemon(tmp_path, *words) as node:
        assert node.process.wait(60) == 78
        line = node.wait_for_line("failed to start")
    assert "worker" in line
    assert "max_model_len" in line


def test_garbage_on_the_control_socket_is_dropped(simulated):
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 1000)
    dealer.connect(f"ipc://{simulated.socket}.d/control.sock")
    for frames in (
        [b""],
        [b"\xc1" * 100],
        [os.urandom(5000)],
        [b"a", b"b", b"c"],
        [b"\x91" * 9000],
    ):
        dealer.send_multipart(frames)
    forged = control.WorkerDrained(generation=simulated.process_named("decode-0").generation)
    dealer.send(control.encode(forged))
    dealer.close()
    context.term()
    assert simulated.status().state == "ready"
    assert simulated.process_named("decode-0").state == "ready"


def test_sigint_on_the_terminal_drains_like_sigterm(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait(30) == 0


def test_a_drain_by_command_keeps_its_deadline(tiny_model, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text("[drain]\ndeadline_s = 1\n")
    words = (str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "0.01")
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        body = {"model": node.model, "prompt": LONG_PROMPT, "max_tokens": 300}

        def ask():
            with contextlib.suppress(httpx.HTTPError):
                node.client.post("/v1/completions", json=body)

        asking = threading.Thread(target=ask)
        asking.start()
        node.wait_until(lambda status: status.requests.running_requests == 1)
        assert node.command(DrainRequest()).error is None
        assert node.process.wait(30) == 1
        node.wait_for_line("cut off")
        asking.join(30)
