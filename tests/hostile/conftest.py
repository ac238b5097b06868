"""One node of a real engine with a listener for each gateway."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeserve.config.node import GatewayKind
from tests.hostile.requests import SLOW, Attack
from tests.hostile.sending import Outcome, exchange
from tests.support.daemon import Daemon, daemon

FILE = """\
model = "{model}"
[[workers]]
role = "aggregated"
[[listener]]
name = "python"
gateway = "python"
args = {{tool_call_parser = "hermes"}}
[[listener]]
name = "rust"
gateway = "rust"
socket = "{folder}/rust.sock"
args = {{tool_call_parser = "hermes"}}
[engine.args]
dtype = "float32"
max_model_len = 2048
block_size = 32
max_num_seqs = 16
kv_cache_memory_bytes = {kv_bytes}
"""

Slow = dict[tuple[GatewayKind, str], Future[Outcome]]


class Target:
    """A node and where its gateways listen."""

    def __init__(self, node: Daemon, folder: Path) -> None:
        self.node = node
        self._folder = folder

    def socket(self, gateway: GatewayKind) -> Path:
        name = "rust.sock" if gateway is GatewayKind.RUST else "api.sock"
        return self._folder / name

    def send(self, gateway: GatewayKind, attack: Attack) -> Outcome:
        path, patience_s = self.socket(gateway), attack.patience_s
        return exchange(path, attack.pieces, pause_s=attack.pause_s, patience_s=patience_s)

    def pids(self) -> dict[str, int | None]:
        return {process.name: process.pid for process in self.node.status().processes}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("h")
    model = folder / "tiny"
    program = "import sys; from tests.support.tiny_model import make; make(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(model)], timeout=120, check=True)
    file = folder / "node.toml"
    file.write_text(FILE.format(model=model, folder=folder, kv_bytes=64 << 20))
    with daemon(folder, f"--config={file}") as node:
        node.wait_ready()
        yield Target(node, folder)
        assert node.stop() == 0


@pytest.fixture(scope="module")
def slow(target: Target) -> Iterator[Slow]:
    """Attacks that take their time: they go on beside all others."""
    with ThreadPoolExecutor(len(SLOW) * len(GatewayKind)) as threads:
        yield {
            (gateway, attack.name): threads.submit(target.send, gateway, attack)
            for gateway in GatewayKind
            for attack in SLOW
        }
