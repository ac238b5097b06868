import asyncio
import json
import socket as sockets
import socketserver
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import openai
import pytest

import nodeserve
from nodeserve import client
from nodeserve.errors import RequestError
from tests.ledger.books import Books, started


class Handler(BaseHTTPRequestHandler):
    """Answers /v1/models and repeats the prompt of a streamed completion."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"]
        chunks = [
            {"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": text}]}
            for text in (body["prompt"], key)
        ]
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._write(lines.encode(), "text/event-stream")

    def _answer(self, value: object) -> None:
        self._write(json.dumps(value).encode(), "application/json")

    def _write(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_args) -> None:
        """Keep quiet."""


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "api.sock"
    with socketserver.ThreadingUnixStreamServer(str(place), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield place
        server.shutdown()
        thread.join(5)


def test_requests_go_through_the_socket(path):
    with nodeserve.connect(path) as node:
        assert [model.id for model in node.models.list()] == ["tiny"]


def test_answers_stream_and_the_key_travels(path):
    with nodeserve.connect(path, api_key="k1") as node:
        stream = node.completions.create(model="tiny", prompt="hello", stream=True)
        assert [chunk.choices[0].text for chunk in stream] == ["hello", "Bearer k1"]


def test_the_async_client_does_the_same(path):
    async def ask() -> list[str]:
        async with nodeserve.connect_async(str(path)) as node:
            stream = await node.completions.create(model="tiny", prompt="hello", stream=True)
            return [chunk.choices[0].text async for chunk in stream]

    assert asyncio.run(ask()) == ["hello", "Bearer none"]


NOBODY = r"^no nodeserve answers at .*none\.sock \(.*No such file.*\); start one with `nodeserve"


def test_a_node_that_does_not_run_is_a_connection_error_that_says_what_to_do(tmp_path):
    node = nodeserve.connect(tmp_path / "none.sock").with_options(max_retries=0)
    with pytest.raises(openai.APIConnectionError, match=NOBODY):
        node.models.list()
    with pytest.raises(openai.APIConnectionError, match=NOBODY):
        node.completions.create(model="tiny", prompt="hello", stream=True)


def test_the_async_client_says_the_same(tmp_path):
    async def ask() -> None:
        async with nodeserve.connect_async(tmp_path / "none.sock").with_options(
            max_retries=0
        ) as node:
            await node.models.list()

    with pytest.raises(openai.APIConnectionError, match=NOBODY):
        asyncio.run(ask())


def test_a_timeout_is_still_one(tmp_path):
    with sockets.socket(sockets.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen()
        node = nodeserve.connect(tmp_path / "deaf.sock", timeout_s=0.1)
        with pytest.raises(openai.APITimeoutError, match="timed out"):
            node.with_options(max_retries=0).models.list()


def test_the_package_offers_what_the_client_module_has():
    assert set(nodeserve.__all__) <= set(dir(client))


def test_importing_the_package_imports_no_openai():
    code = "import sys, nodeserve; sys.exit('openai' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_what_a_response_used_is_read_from_its_nodes_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    books = Books(tmp_path)
    books.book(opened=[books.opened()])
    books.book(books.settled({"d9-1.1": 300}), notes=[books.noted(started=[started(1)])])
    found = nodeserve.energy_of("cmpl-1", socket=tmp_path / "api.sock")
    assert (found.total_mj, found.is_settled) == (300, False)
    assert nodeserve.energy_of("cmpl-1", db=books.path) == found
    with pytest.raises(RequestError, match="knows no response"):
        nodeserve.energy_of("cmpl-2", db=books.path)
    books.store.close()
