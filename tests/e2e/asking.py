"""Prompts, and clients that ask a node to continue them."""

import contextlib
import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.support.daemon import Daemon

LENGTHS: Final = (
    *(1, 2, 5, 17, 31, 32, 33, 63, 64, 65, 96, 100),
    *(128, 200, 257, 333, 512, 700, 1000, 1500, 1900, 40, 41),
)
"""In tokens: both sides of a block's ends, and of what a step takes."""

OUTPUT_TOKENS: Final = 40


def prompts() -> list[list[int]]:
    """Return prompts as token ids; the last one begins as a longer one does."""
    chosen = random.Random(7)
    made = [[chosen.randrange(5, 260) for _ in range(length)] for length in LENGTHS]
    made[-1] = made[18][:600] + made[-1]
    return made


@dataclass(frozen=True)
class Answer:
    """What a client is told."""

    token_ids: list[int]
    prompt_tokens: int
    cached_tokens: int


def completion(prompt: list[int], **more: Any) -> dict[str, Any]:
    """Return the body of a request for greedy tokens."""
    return {"prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0} | more


def ask(node: Daemon, prompt: list[int], *, salt: str) -> Answer:
    """Return what the node answers; nothing is cached from requests with another ``salt``."""
    body = completion(prompt, ignore_eos=True, return_token_ids=True, cache_salt=salt)
    response = node.client.post("/v1/completions", json={"model": node.model} | body)
    assert response.status_code == 200, response.text
    answer = response.json()
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(answer["choices"][0]["token_ids"], usage["prompt_tokens"], cached)


@contextmanager
def asking(node: Daemon, several: list[list[int]], *, salt: str) -> Iterator[list[Future[Answer]]]:
    """Ask for all at once; the block gets the answers to come."""
    model = node.model
    assert model
    with ThreadPoolExecutor(len(several)) as threads:
        yield [threads.submit(ask, node, prompt, salt=salt) for prompt in several]


@contextmanager
def stopped(node: Daemon, *names: str) -> Iterator[None]:
    """Keep processes from running for the block, as a debugger or a full disk does."""
    pids = [node.kill(name, signal.SIGSTOP) for name in names]
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Connection:
    """A client that can leave in the middle."""

    def __init__(self, node: Daemon, prompt: list[int], **more: Any) -> None:
        """Connect and ask for a stream."""
        body = completion(prompt, model=node.model, stream=True, ignore_eos=True, **more)
        text = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n"
        )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(node.socket))
        self._socket.sendall(head.encode() + text)

    def wait_for(self, text: bytes) -> None:
        """Return when the answer has ``text`` in it."""
        seen = b""
        while text not in seen:
            part = self._socket.recv(65536)
            assert part, f"the answer ended without {text!r}: {seen[-500:]!r}"
            seen += part

    def leave(self) -> None:
        """Close, whatever is under way."""
        self._socket.close()
