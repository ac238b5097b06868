"""A few lines of an OpenAI server on a Unix socket, for the commands that talk to a model."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar


class Handler(BaseHTTPRequestHandler):
    """Streams each word it was last sent; 400 for the word ``bad``, nothing for ``empty``."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]]

    def do_GET(self) -> None:
        self._write(200, json.dumps({"object": "list", "data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if said == "bad":
            self._write(400, json.dumps({"error": {"message": "not that"}}).encode())
            return
        words = [] if said == "empty" else said.split()
        events = [self._chunk(word, chat="messages" in body) for word in words]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self._write(200, "".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    @staticmethod
    def _chunk(word: str, *, chat: bool) -> dict[str, Any]:
        if chat:
            return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": f"{word};"}}]}
        return {"id": "cmpl-1", "choices": [{"index": 0, "text": f"{word};"}]}

    def _write(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_args) -> None:
        """Keep quiet."""


@contextmanager
def serving(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Serve at ``path`` and yield the bodies that clients sent so far."""

    class Fresh(Handler):
        asked: ClassVar[list[dict[str, Any]]] = []

    with socketserver.ThreadingUnixStreamServer(str(path), Fresh) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Fresh.asked
        server.shutdown()
        thread.join(5)
