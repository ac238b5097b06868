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
    """Streams each word it was last sent; 400 for the word ``bad``, nothing for ``empty``.

    After the word ``cut`` it breaks off, after ``gone`` with its socket removed. The last word's
    chunk ends by ``finish_reason``.
    """

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]]
    finish_reason: ClassVar[str] = "stop"

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
        cut = words[-1:] in (["cut"], ["gone"])
        events = [self._chunk(word, chat="messages" in body) for word in words[: -cut or None]]
        if events:
            events[-1]["choices"][0]["finish_reason"] = None if cut else self.finish_reason
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        if words[-1:] == ["gone"]:
            Path(self.server.server_address).unlink()
        ending = [] if cut else ["data: [DONE]\n\n"]
        self._write(200, "".join([*lines, *ending]).encode(), "text/event-stream", more=cut)

    @staticmethod
    def _chunk(word: str, *, chat: bool) -> dict[str, Any]:
        if chat:
            return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": f"{word};"}}]}
        return {"id": "cmpl-1", "choices": [{"index": 0, "text": f"{word};"}]}

    def _write(
        self, status: int, body: bytes, kind: str = "application/json", *, more: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + more))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or more

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_args) -> None:
        """Keep quiet."""


@contextmanager
def serving(path: Path, finished_by: str = "stop") -> Iterator[list[dict[str, Any]]]:
    """Serve at ``path`` and yield the bodies that clients sent so far."""

    class Fresh(Handler):
        asked: ClassVar[list[dict[str, Any]]] = []
        finish_reason: ClassVar[str] = finished_by

    with socketserver.ThreadingUnixStreamServer(str(path), Fresh) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Fresh.asked
        server.shutdown()
        thread.join(5)
