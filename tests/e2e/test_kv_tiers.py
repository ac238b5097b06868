"""The tiers below the GPUs of a running node: reloaded, cleared, pinned, on disk over a restart."""

import re
import signal
import subprocess
import sys

import pytest

from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvClear, KvPin, KvUnpin
from tests.e2e.conftest import REAL, SIMULATED
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

PROMPT = [7 * place % 250 + 3 for place in range(500)]
NUM_BLOCKS = 31
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
TIER = '[kv.host]\nsize = "64MiB"\n'


@pytest.fixture
def serving(tiny_model, tmp_path):
    """Start nodes with a configuration file, one after another."""
    config = tmp_path / "node.toml"

    def start(toml):
        config.write_text(toml)
        words = (str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "5")
        return daemon(tmp_path, *words)

    start.config = config
    return start


def joined(node, workers=WORKERS):
    """Wait until every engine uses the tier; return the tiers."""
    status = node.wait_until(
        lambda status: status.kv is not None and len(status.kv.engines) == len(workers)
    )
    return status.kv


def store(node):
    """Compute the prompt; return its answer when its blocks are in the tier."""
    before = joined(node).tiers[0].stores
    answer = node.complete(PROMPT, max_tokens=4)
    node.wait_until(lambda status: status.kv.tiers[0].stores >= before + NUM_BLOCKS)
    return answer["choices"][0]["text"]


def on_disk(node):
    """Wait until the disk tier has the prompt's blocks, or has found them again."""
    node.wait_until(lambda status: status.kv.tiers[1].used_slots >= NUM_BLOCKS)


def renew(node, names=WORKERS):
    """Kill processes, and wait for the next of each."""
    before = {p.name: p.generation for p in node.status().processes}
    for name in names:
        node.kill(name)
    node.wait_until(
        lambda status: (
            status.state == "ready"
            and all(p.generation > before[p.name] for p in status.processes if p.name in names)
        )
    )


def cached_tokens(node, expected):
    """Ask again; the answer must be the same. Return what of it was not computed."""
    answer = node.complete(PROMPT, max_tokens=4)
    assert answer["choices"][0]["text"] == expected
    return (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)


def reload(node, serving, toml):
    serving.config.write_text(toml)
    node.process.send_signal(signal.SIGHUP)
    node.wait_for_line("supervisor_reloaded")


def test_the_tier_outlives_a_reload_and_every_process_that_used_it(serving):
    with serving(TIER) as node:
        node.wait_ready()
        expected = store(node)
        manager = node.process_named("block-manager")
        reload(node, serving, TIER + "[drain]\ndeadline_s = 30\n")
        assert node.process_named("block-manager").pid == manager.pid
        (host,) = node.status().kv.tiers
        assert host.written_bytes == NUM_BLOCKS * node.status().kv.block_bytes
        assert host.written_gbps > 0
        renew(node, [*WORKERS, "block-manager"])
        joined(node)
        assert cached_tokens(node, expected) == NUM_BLOCKS * 16
        node.wait_until(lambda status: status.kv.tiers[0].read_gbps is not None)
        assert node.stop() == 0


def test_a_reload_that_resizes_the_tier_restarts_the_block_manager_alone(serving):
    with serving(TIER) as node:
        node.wait_ready()
        expected = store(node)
        before = {p.name: p.generation for p in node.status().processes}
        reload(node, serving, TIER.replace("64", "32"))
        node.wait_until(
            lambda status: (
                status.kv is not None
                and bool(status.kv.tiers)
                and status.kv.tiers[0].capacity_bytes == 32 << 20
                and len(status.kv.engines) == len(WORKERS)
            )
        )
        after = {p.name: p.generation for p in node.status().processes}
        assert [name for name in before if before[name] != after[name]] == ["block-manager"]
        assert cached_tokens(node, expected)  # the engines' own caches are what they were
        assert node.stop() == 0


def test_a_tier_comes_and_goes_by_reloads(serving):
    with serving("") as node:
        node.wait_ready()
        reload(node, serving, TIER)
        joined(node)
        node.wait_until(lambda status: not status.reloading)
        expected = store(node)
        reload(node, serving, "")
        node.wait_until(
            lambda status: (
                all(p.name != "block-manager" for p in status.processes) and not status.reloading
            )
        )
        assert node.status().kv is None
        assert node.complete(PROMPT, max_tokens=4)["choices"][0]["text"] == expected
        assert node.stop() == 0


def test_the_operator_clears_pins_and_looks(serving):
    with serving(TIER + "[[listener]]\nkv_host_share = 0.75\n") as node:
        node.wait_ready()
        expected = store(node)
        renew(node)
        joined(node)
        assert cached_tokens(node, expected)
        prefix = node.status().kv.prefixes[0]
        assert prefix.blocks == NUM_BLOCKS
        reply = node.ask(KvPin(key=prefix.key[:12]))
        assert isinstance(reply, CommandReply)
        assert reply.error is None, reply
        assert node.ask(KvClear()).error is None
        assert node.status().kv.tiers[0].used_slots == NUM_BLOCKS
        assert node.ask(KvUnpin()).error is None
        assert node.ask(KvClear(listener="api")).error is None
        status = node.status()
        assert status.kv.tiers[0].used_slots == 0
        assert status.kv.listeners[0].quota == 0.75
        words = [sys.executable, "-m", "nodeserve.cli.main", "kv", "--socket", str(node.socket)]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert "4 engines" in shown
        assert node.stop() == 0


def test_what_is_on_disk_is_found_after_a_restart_of_the_daemon(serving, tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    tiers = TIER + f'[kv.disk]\ndirectories = ["{tmp_path}/disk"]\nsize = "256MiB"\n'
    with serving(tiers) as node:
        node.wait_ready()
        expected = store(node)
        on_disk(node)
        assert node.stop() == 0
    with serving(tiers) as node:
        node.wait_ready()
        joined(node)
        on_disk(node)
        assert cached_tokens(node, expected) == NUM_BLOCKS * 16
        assert node.status().kv.tiers[0].promotions >= NUM_BLOCKS
        assert node.stop() == 0


def test_real_engines_find_what_dead_ones_have_computed(tiny_model, tmp_path):
    words = (str(tiny_model), "--prefill", "1", "--decode", "1", "--kv-host", "64MiB", *REAL)
    workers = ("prefill-0", "decode-0")
    num_blocks = len(PROMPT) // 32
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        joined(node, workers)
        expected = node.complete(PROMPT, max_tokens=8)["choices"][0]["text"]
        node.wait_until(lambda status: status.kv.tiers[0].stores >= num_blocks)
        renew(node, workers)
        joined(node, workers)
        answer = node.complete(PROMPT, max_tokens=8)
        assert answer["choices"][0]["text"] == expected
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == num_blocks * 32
        shown = node.client.get("/metrics").text
        hits = re.search(r"vllm:external_prefix_cache_hits_total\{.*\} (\d+)", shown)
        assert int(hits[1]) >= num_blocks * 32
        assert not node.status().kv.refused_engines
        assert node.stop() == 0
