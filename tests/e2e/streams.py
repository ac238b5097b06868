"""Streams of a node that are read while something happens to it."""

import contextlib
import json
import threading
import time

import httpx

from tests.support.daemon import Daemon

PROMPTS = [
    f"Story number {number}. " + "Once upon a time in a hilly land. " * 6 for number in range(8)
]


def busy_workers(status):
    """Return the names of the workers that have requests running."""
    busy = {load.generation for load in status.requests.workers if load.running}
    return [p.name for p in status.processes if p.generation in busy and p.name != "supervisor"]


class Stream:
    """One streamed completion, read in a thread: the tokens so far and how it ended."""

    def __init__(self, node: Daemon, model: str, prompt: str, **more: object) -> None:
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.usage: dict[str, int] = {}
        self.longest_gap_s = 0.0
        self._last_s: float | None = None
        self.grew = threading.Condition()
        body = {"model": model, "prompt": prompt, "stream": True, "ignore_eos": True}
        body |= {"stream_options": {"include_usage": True}, "return_token_ids": True} | more
        self.thread = threading.Thread(target=self._read, args=(node, body))
        self.thread.start()

    def _read(self, node: Daemon, body: dict[str, object]) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            node.client.stream("POST", "/v1/completions", json=body) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line[6:]))
        with self.grew:
            self.finish = self.finish or "cut off"
            self.grew.notify_all()

    def _take(self, event: dict) -> None:
        with self.grew:
            self.usage = event.get("usage") or self.usage
            now_s = time.monotonic()
            if self._last_s is not None:
                self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
            self._last_s = now_s
            for choice in event.get("choices", []):
                self.tokens += choice.get("token_ids") or []
                self.finish = choice.get("finish_reason") or self.finish
            self.grew.notify_all()

    def wait_for(self, num_tokens: int) -> None:
        with self.grew:
            assert self.grew.wait_for(lambda: len(self.tokens) >= num_tokens or self.finish, 60)

    def end(self) -> tuple[list[int], str | None, dict[str, int]]:
        self.thread.join(120)
        assert self.finish in {"length", "stop"}
        assert self.usage["completion_tokens"] == len(self.tokens)
        return self.tokens, self.finish, self.usage
