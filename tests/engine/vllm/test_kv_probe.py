"""Engines say where their KV lies, and measure how fast they read another's."""

import pytest

from tests.engine.vllm.conftest import ASYNC, SYNC

pytestmark = pytest.mark.vllm


def test_an_engine_measures_a_peers_pool_and_leaves_its_own_alone(node):
    prompt = list(range(5, 105))
    before = node.whole(ASYNC, prompt, 4).tokens
    pools = node.call(SYNC, "nodeserve_pools")
    (pool,) = pools
    assert pool["handle"]["pid"] == node.processes[SYNC].pid
    found = node.call(ASYNC, "nodeserve_probe", pools)
    assert found.pop("transport") == "shared_memory"
    assert set(found) == {"latency_us", "gbps_64kb", "gbps_256kb", "gbps_64mb"}
    assert all(figure > 0 for figure in found.values())
    again = node.whole(ASYNC, prompt, 4)
    assert again.tokens == before
    assert again.prefill["num_local_cached_tokens"] > 0


def test_what_cannot_be_read_is_said_and_is_no_failure_of_the_engine(node):
    (pool,) = node.call(SYNC, "nodeserve_pools")
    gone = {**pool, "handle": {**pool["handle"], "pid": 2**22 + 1}}
    assert "has probably ended" in node.call(ASYNC, "nodeserve_probe", [gone])["error"]
    strange = {**pool, "handle": {"transport": "tcp"}}
    assert "shares KV by tcp" in node.call(ASYNC, "nodeserve_probe", [strange])["error"]
    assert "no KV pool" in node.call(ASYNC, "nodeserve_probe", [])["error"]
    assert "error" in node.call(ASYNC, "nodeserve_probe", [{}])
