"""vLLM's KV cache lies where peers can read it."""

from pathlib import Path

import pytest

from nodeserve.kv import layout
from tests.engine.vllm.conftest import ASYNC, SYNC

pytestmark = pytest.mark.vllm


def test_the_whole_kv_cache_is_one_shared_file(node) -> None:
    maps = Path(f"/proc/{node.processes[ASYNC].pid}/maps").read_text().splitlines()
    (pool,) = [line for line in maps if "memfd:nodeserve-kv" in line and "rw-s" in line]
    start, end = (int(part, 16) for part in pool.split()[0].split("-"))
    ready = node.ready[ASYNC]
    assert end - start == ready.num_gpu_blocks * ready.kv_block_bytes


def test_a_handoff_describes_that_file(node) -> None:
    handoff = node.prefill(ASYNC, list(range(5, 50)))
    (pool,) = handoff["pools"]
    geometry = layout.from_plain(pool["geometry"])
    ready = node.ready[ASYNC]
    assert geometry.block_bytes() == ready.kv_block_bytes
    assert geometry.num_blocks == ready.num_gpu_blocks
    assert pool["handle"]["bytes"] == geometry.pool_bytes
    assert pool["handle"]["pid"] == node.processes[ASYNC].pid
    node.release(handoff)


def test_a_peers_pool_is_mapped_read_only(node) -> None:
    prompt = list(range(5, 105))
    handoff = node.prefill(SYNC, prompt)
    node.decode(ASYNC, prompt, 1, handoff)
    node.release(handoff)
    maps = Path(f"/proc/{node.processes[ASYNC].pid}/maps").read_text().splitlines()
    modes = [line.split()[1] for line in maps if "memfd:nodeserve-kv" in line]
    assert modes.count("rw-s") == 1  # its own
    assert modes.count("r--s") == len(modes) - 1 > 0
