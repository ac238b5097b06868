"""A node as an operator starts it, with a client on its socket."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.answers import events
from tests.conformance.gateway.capabilities import Capability
from tests.support.daemon import daemon

LAYOUTS: Final = {
    "aggregated": ("--aggregated", "1"),
    "1p1d": ("--prefill", "1", "--decode", "1"),
}
ENGINE: Final = (
    *("--dtype", "float32"),
    *("--max-model-len", "2048"),
    *("--block-size", "32"),
    *("--max-num-seqs", "16"),
    *("--kv-cache-memory-bytes", str(64 << 20)),
    *("--tool-call-parser", "hermes"),
)


@dataclass
class Node:
    """A running node."""

    gateway: GatewayKind
    layout: str
    socket: Path
    client: httpx.Client
    model: str
    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)

    def ask(self, capability: Capability) -> tuple[int, Any]:
        """Return the status and the answer to a capability's request; it is sent once."""
        key = (capability.group, capability.name)
        if key not in self.answers:
            self.answers[key] = self.send(capability.path, capability.body)
        return self.answers[key]

    def send(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Return the status and the answer: JSON, or a stream's events, or text."""
        if body is None:
            response = self.client.get(path)
        else:
            response = self.client.post(path, json={"model": self.model} | body)
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            return response.status_code, list(events(response.text))
        if kind.startswith("application/json"):
            return response.status_code, response.json()
        return response.status_code, response.text

    def works(self) -> bool:
        """Whether an ordinary request is answered."""
        body = {"prompt": "Are you still there, my friend?", "max_tokens": 3}
        return self.send("/v1/completions", body)[0] == 200

    def metric(self, name: str) -> float:
        """Return a Prometheus metric of the gateway, summed over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith((name + "{", name + " "))]
        assert found, f"{name} is not among the metrics"
        return sum(float(line.rsplit(maxsplit=1)[1]) for line in found)

    def operate(self, *words: str) -> str:
        """Run a command of the CLI against the node and return what it prints."""
        argv = [sys.executable, "-m", "nodeserve.cli.main", *words, "--socket", str(self.socket)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return `nodeserve status --json`."""
        return dict(json.loads(self.operate("status", "--json")))


@contextmanager
def running(gateway: GatewayKind, layout: str, *, model: Path, folder: Path) -> Iterator[Node]:
    """Start a node by the CLI; leave the block and it is stopped by SIGTERM, with status 0."""
    words = (str(model), *LAYOUTS[layout], "--gateway", gateway, "--", *ENGINE)
    with daemon(folder, *words) as started:
        started.wait_ready()
        yield Node(gateway, layout, started.socket, started.client, started.model)
        assert started.stop() == 0
