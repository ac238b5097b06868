"""Listeners as tenants of one simulated node: who is served, who waits, who is turned away."""

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
import statistics
import time

import httpx
import pytest

from tests.support.daemon import daemon

pytestmark = pytest.mark.e2e

FLOOD, NUM_CHATS = 1000, 40
SOCKETS = {"api.sock": 0o666, "batch.sock": 0o600, "few.sock": 0o660}
CONFIG = """
[simulate]
system = "1xh100-sxm"
speedup = {speedup}

[engine]
args = {{ max_num_seqs = 16 }}

[[listener]]
name = "chat"
mode = "0666"

[[listener]]
name = "batch"
socket = "{folder}/batch.sock"
mode = "0600"
group = "{group}"

[[listener]]
name = "keyed"
listen = "127.0.0.1:{port}"
api_key_file = "{folder}/keys"

[[listener]]
name = "few"
socket = "{folder}/few.sock"
gateway = "{few}"
max_running_requests = 1
max_queued_requests = 1
queue_timeout_s = {timeout_s}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(folder, model, *, few: str, speedup: float = 1.0, timeout_s: float = 600.0):
    """Return a daemon whose listener ``few`` has that gateway; the others have rust ones."""
    (folder / "keys").write_text("secret\n")
    (folder / "keys").chmod(0o600)
    config = folder / "node.toml"
    group = grp.getgrgid(os.getgid()).gr_name
    given = {"folder": folder, "port": free_port(), "group": group, "few": few}
    config.write_text(CONFIG.format(**given, speedup=speedup, timeout_s=timeout_s))
    return daemon(folder, str(model), "--config", str(config), "--aggregated", "1")


def client(path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=None))
    return httpx.AsyncClient(transport=transport, base_url="http://node", timeout=240)


def body(model: str, number: int, max_tokens: int, **more) -> dict:
    prompt = [5 + number % 250, 7 + number // 250, *range(10, 40)]
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True} | more


def loads(node) -> dict:
    return {load.name: load for load in node.status().requests.listeners}


async def until(node, listener: str, what) -> None:
    """Wait until a listener's load is as wanted."""
    while True:
        if what((await asyncio.to_thread(loads, node))[listener]):
            return
        await asyncio.sleep(0.02)  # status has no event to wait for


# ------------------------------------------------------------------------------ a flood


async def ttft_s(path, request: dict) -> float:
    """Return how long a stream's first token took, and read the rest.

    Written out by hand: an HTTP client's pool of a thousand connections would take more of the
    machine than the node that it measures.
    """
    begun_s = time.monotonic()
    text = json.dumps(request | {"stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: node\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_unix_connection(str(path))
    with contextlib.closing(writer):
        writer.write(head.encode() + text)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        await reader.readuntil(b"data: {")
        first_s = time.monotonic() - begun_s
        assert b"[DONE]" in await reader.read()
    return first_s


async def ask_one_after_another(path, model: str) -> list[float]:
    return [await ttft_s(path, body(model, number, 8)) for number in range(NUM_CHATS)]


async def flood_and_ask(node) -> tuple[list[float], list[float], list[float], int]:
    """Return first tokens' times of the chat before and beside a flood, and of the flood.

    Last comes how many of the flood still waited when the chat was done.
    """
    model, batch = node.model, node.socket.parent / "batch.sock"
    before = await ask_one_after_another(node.socket, model)
    requests = [body(model, number, 32 + number * 37 % 64) for number in range(FLOOD)]
    flood = [asyncio.create_task(ttft_s(batch, request)) for request in requests]
    await until(node, "batch", lambda load: load.queued > FLOOD * 3 // 4)
    beside = await ask_one_after_another(node.socket, model)
    waiting = (await asyncio.to_thread(loads, node))["batch"].queued
    return before, beside, await asyncio.gather(*flood), waiting


def shown(times: list[float]) -> str:
    return f"p50 {statistics.median(times) * 1e3:.0f} ms, p99 {p99(times) * 1e3:.0f} ms"


def p99(times: list[float]) -> float:
    return sorted(times)[round((len(times) - 1) * 0.99)]


def test_a_flood_of_one_listener_leaves_the_others_first_tokens_alone(
    tiny_model, tmp_path, record_property
):
    with run(tmp_path, tiny_model, few="rust", speedup=0.4) as node:
        before, beside, flood, waiting = asyncio.run(flood_and_ask(node.wait_ready()))
        found = loads(node)
    record_property("chat alone", f"TTFT {shown(before)}")
    record_property(f"chat beside {FLOOD} requests of batch", f"TTFT {shown(beside)}")
    record_property("batch", f"TTFT {shown(flood)}")
    assert waiting > FLOOD // 4, (waiting, shown(before), shown(beside), shown(flood))
    assert p99(beside) < statistics.median(flood) / 5
    assert (found["batch"].queued, found["batch"].running, found["batch"].refused) == (0, 0, 0)
    assert found["batch"].gpu_s > 10 * found["chat"].gpu_s > 0


# ------------------------------------------------------------------------------- limits


@contextlib.asynccontextmanager
async def full(node):
    """Let one long request of listener ``few`` run and one wait; yield a client and that one."""
    model = node.model
    async with client(node.socket.parent / "few.sock") as http:
        long = body(model, 1, 1900)
        runs = asyncio.create_task(http.post("/v1/completions", json=long))
        await until(node, "few", lambda few: few.running == 1)
        waits = asyncio.create_task(http.post("/v1/completions", json=body(model, 2, 1)))
        await until(node, "few", lambda few: few.queued == 1)
        yield http, waits
        runs.cancel()
        waits.cancel()
        await asyncio.wait({runs, waits})


def test_a_python_gateway_answers_429_before_it_takes_a_request(tiny_model, tmp_path):
    async def ask(node) -> None:
        async with full(node) as (http, _):
            refused = await http.post("/v1/completions", json=body(node.model, 3, 1))
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            for path in ("/health", "/metrics", "/v1/models"):
                assert (await http.get(path)).status_code == 200
            async with client(node.socket) as chat:
                other = await chat.post("/v1/completions", json=body(node.model, 4, 1))
                assert other.status_code == 200
            few = (await asyncio.to_thread(loads, node))["few"]
            assert (few.running, few.queued, few.refused, few.turned_away) == (1, 1, 0, 1)
        await until(node, "few", lambda few: few.running == few.queued == 0)
        async with client(node.socket.parent / "few.sock") as http:
            taken = await http.post("/v1/completions", json=body(node.model, 5, 1))
            assert taken.status_code == 200

    with run(tmp_path, tiny_model, few="python", speedup=0.1) as node:
        asyncio.run(ask(node.wait_ready()))


def test_behind_a_rust_gateway_the_excess_waits_and_fails_at_its_deadline(tiny_model, tmp_path):
    async def ask(node) -> None:
        async with full(node) as (http, waits):
            refused = await http.post("/v1/completions", json=body(node.model, 3, 1))
            assert refused.status_code == 500
            assert "error" in refused.json()
            expired = await waits
            assert expired.status_code == 500
            few = (await asyncio.to_thread(loads, node))["few"]
            assert (few.running, few.queued, few.refused, few.expired) == (1, 0, 1, 1)

    with run(tmp_path, tiny_model, few="rust", speedup=0.1, timeout_s=1.0) as node:
        asyncio.run(ask(node.wait_ready()))


# ------------------------------------------------------------------------- who may come in


def test_each_socket_has_its_own_permissions_and_each_address_its_own_keys(tiny_model, tmp_path):
    with run(tmp_path, tiny_model, few="rust") as node:
        node.wait_ready()
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in SOCKETS}
        assert modes == SOCKETS
        assert (tmp_path / "batch.sock").stat().st_gid == os.getgid()
        address = next(a for a in node.status().listeners if a.startswith("127.0.0.1:"))
        with httpx.Client(base_url=f"http://{address}", timeout=60) as keyed:
            assert keyed.get("/v1/models").status_code == 401
            keyed.headers["authorization"] = "Bearer wrong"
            assert keyed.get("/v1/models").status_code == 401
            keyed.headers["authorization"] = "Bearer secret"
            assert keyed.get("/v1/models").status_code == 200
        assert node.client.get("/v1/models").status_code == 200
