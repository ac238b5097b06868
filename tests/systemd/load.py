"""Clients of a service that is being restarted: many short connections, every answer counted."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NUM_CLIENTS: Final = 8
ANSWER_DEADLINE_S: Final = 60.0
OK: Final = "200"


def ask(path: Path, max_tokens: int) -> str:
    """Ask for one completion over a connection of its own; return the status, or what failed."""
    body = {"model": "tiny", "prompt": "hello", "max_tokens": max_tokens, "ignore_eos": True}
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: node\r\nContent-Length: {len(text)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_DEADLINE_S)
            client.connect(str(path))
            client.sendall(head.encode() + text)
            while part := client.recv(65536):
                answer += part
    except OSError as error:
        return repr(error)
    if not answer.endswith(b"}"):
        return f"cut off after {len(answer)} bytes"
    return answer.split()[1].decode()


class Load:
    """Clients that ask one request after another until ``stop``."""

    def __init__(self, path: Path) -> None:
        self.answers: Counter[str] = Counter()
        self.longest_s = 0.0
        self._path = path
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._client) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def lost(self) -> Counter[str]:
        """What was no answer, and how often."""
        return Counter({said: n for said, n in self.answers.items() if said != OK})

    def wait_for(self, num_answers: int) -> None:
        """Return when so many more requests have been answered."""
        with self._changed:
            wanted = self.answers[OK] + num_answers
            assert self._changed.wait_for(lambda: self.answers[OK] >= wanted, ANSWER_DEADLINE_S), (
                self.answers
            )

    def stop(self) -> None:
        """Let each client finish its last request."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def record(self, note: Callable[[str, object], None]) -> None:
        """Note the figures in the tests' report."""
        note("requests", self.answers.total())
        note("lost", self.lost.total())
        note("longest_s", round(self.longest_s, 2))

    def _client(self) -> None:
        while not self._stop.is_set():
            begun_s = time.monotonic()
            said = ask(self._path, 8)
            with self._changed:
                self.answers[said] += 1
                self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
                self._changed.notify_all()


@contextmanager
def load(path: Path) -> Iterator[Load]:
    """Ask for the block; all answers are in when it ends."""
    running = Load(path)
    try:
        running.wait_for(NUM_CLIENTS)
        yield running
    finally:
        running.stop()
