"""Nodes that e2e tests share: simulated ones anew for each, real ones for the whole session."""

import subprocess
import sys

import pytest

from tests.e2e.asking import ask, prompts
from tests.support.daemon import daemon

SIMULATED = ("--simulate", "4xh100-sxm", "--gateway", "rust")

LEASE_TTL_S = 4
"""Long for a handoff, also on a machine that is busy; short for a test that waits for its end."""

REAL = (
    *("--gateway", "rust", "--"),
    *("--dtype", "float32"),
    *("--max-model-len", "2048"),
    *("--block-size", "32"),
    *("--max-num-seqs", "8"),
    *("--max-num-batched-tokens", "512"),  # so that long prompts are prefilled in pieces
    *("--kv-cache-memory-bytes", str(64 << 20)),
    "--enable-prompt-tokens-details",
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A float32 model whose output depends on the prompt; made where torch may be imported."""
    folder = tmp_path_factory.mktemp("tiny")
    program = "import sys; from tests.support.tiny_model import make; make(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], timeout=120, check=True)
    return folder


@pytest.fixture
def simulated(tiny_model, tmp_path):
    """A ready node of 2 prefill and 2 decode workers that need no torch."""
    with daemon(tmp_path, str(tiny_model), *SIMULATED, "--speedup", "20") as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def reference(tiny_model, tmp_path_factory):
    """What one engine answers to each of the prompts, asked one after another."""
    words = (str(tiny_model), "--aggregated", "1", *REAL)
    with daemon(tmp_path_factory.mktemp("one"), *words) as node:
        node.wait_ready()
        answers = [ask(node, prompt, salt="one") for prompt in prompts()]
        assert node.stop() == 0
    assert len({tuple(answer.token_ids) for answer in answers}) == len(answers)
    return answers


@pytest.fixture(scope="session", params=["async_load", "sync_load"])
def pair(request, tiny_model, tmp_path_factory):
    """A prefill and a decode worker; every prompt is handed over, however short."""
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "node.toml"
    config.write_text(
        f"[kv]\nasync_load = {str(request.param == 'async_load').lower()}\n"
        "load_at_once_bytes = 0\n"
        f"lease_ttl_s = {LEASE_TTL_S}\n[router]\nlocal_prefill_tokens = 0\n"
        # Tests hold a worker still by SIGSTOP, which the node must bear with.
        "[liveness]\nstopped_s = 600\nsilent_s = 600\n"
    )
    words = (str(tiny_model), "--config", str(config), "--prefill", "1", "--decode", "1", *REAL)
    with daemon(folder, *words) as running:
        yield running.wait_ready()
        assert running.stop() == 0


@pytest.fixture(scope="session")
def four(tiny_model, tmp_path_factory):
    """Two prefill and two decode workers with the default settings."""
    words = (str(tiny_model), "--prefill", "2", "--decode", "2", *REAL)
    with daemon(tmp_path_factory.mktemp("four"), *words) as running:
        yield running.wait_ready()
