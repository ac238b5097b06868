"""vLLM on one GPU: model runner V2 with asynchronous scheduling, prefill and decode apart."""

import random
import statistics

import pytest

from nodeserve.wire.engine_core import RESUMED
from nodeserve.wire.spawn import KvSpec
from tests.support.plain_block_manager import PlainBlockManager

pytestmark = pytest.mark.gpu

PREFILL, DECODE, VICTIM, TIERED, TIERED_TOO = 1, 2, 3, 4, 5
MAX_TOKENS = 16
HANDOFFS = "tests/engine/vllm/test_gpu_handoffs.py"


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(5, 260) for _ in range(length)]


@pytest.fixture(scope="module")
def node(engines):
    for generation in (PREFILL, DECODE):
        engines.start(generation, KvSpec())
    engines.node.wait_ready(PREFILL, DECODE)
    return engines.node


@pytest.mark.twin(f"{HANDOFFS}::test_handed_over_prompts_get_the_tokens_of_one_engine")
def test_start(node, engines, gpu, record_property):
    """two engines start on one GPU, with model runner V2 and asynchronous scheduling"""
    facts = engines.facts(PREFILL)
    for name, fact in facts.items():
        record_property(name, fact)
    ready = node.ready[PREFILL]
    record_property("KV blocks", ready.num_gpu_blocks)
    record_property("bytes a block", ready.kv_block_bytes)
    record_property("features", "+".join(ready.features))
    (pool,) = node.call(PREFILL, "nodeserve_pools")
    record_property("transport", pool["handle"]["transport"])
    places = pool["geometry"]["places"]
    record_property("places", len(places))
    assert pool["handle"]["uuid"] == gpu.uuids[0]
    if not gpu.is_fake:
        assert facts == {"runner": "vllm.v1.worker.gpu.model_runner", "async": True}


@pytest.mark.twin(f"{HANDOFFS}::test_handed_over_prompts_get_the_tokens_of_one_engine")
def test_equal_output(node, record_property):
    """1P+1D: greedy output equal to one engine's, and what the handoffs took"""
    prompts = [prompt(n, n) for n in (1, 15, 16, 17, 33, 100, 257, 500, 1000, 1500, 1900)]
    expected = [node.whole(PREFILL, p, MAX_TOKENS).tokens for p in prompts]
    control = [node.whole(DECODE, p, MAX_TOKENS).tokens for p in prompts]
    assert node.cache_is_free(DECODE)
    before, equal = node.stats(DECODE), 0
    for one, tokens in zip(prompts, expected, strict=True):
        last = node.stats(DECODE)
        handoff = node.prefill(PREFILL, one)
        answer = node.decode(DECODE, one, MAX_TOKENS, handoff)
        node.release(handoff)
        equal += answer.tokens == tokens
        now = node.stats(DECODE)
        if len(one) in (100, 500, 1500):
            took_ms = now["load_ms"] - last["load_ms"]
            num_bytes = now["load_bytes"] - last["load_bytes"]
            rate = num_bytes / max(took_ms, 1e-6) / 1e6
            text = f"{num_bytes >> 10} KiB in {took_ms:.2f} ms, {rate:.1f} GB/s"
            record_property(f"{len(one)} tokens", text)
    after = node.stats(DECODE)
    record_property("equal", f"{equal} of {len(prompts)}")
    same = sum(a == b for a, b in zip(expected, control, strict=True))
    record_property("two whole engines equal", f"{same} of {len(prompts)}")
    assert after["load_failures"] == before["load_failures"]
    assert after["loads"] - before["loads"] == len(prompts) - 1
    # Kernels choose by batch and may differ in the last bit, so a near tie may fall either way.
    assert equal >= min(same, len(prompts) - 1)


@pytest.mark.twin(
    "tests/engine/vllm/test_connector.py::test_handed_over_prompts_together_get_the_tokens_of_one_engine"
)
def test_handoffs_under_load(node, record_property):
    """handoffs while other requests decode: overhead, and no output changed by them"""
    background = [node.add(DECODE, prompt(60, 900 + i), 400) for i in range(4)]
    for leg in background:
        node.started(leg)
    times = []
    for i in range(20):
        one = prompt(64, 2000 + i)
        last = node.stats(DECODE)["load_ms"]
        handoff = node.prefill(PREFILL, one)
        node.decode(DECODE, one, 2, handoff)
        node.release(handoff)
        times.append(node.stats(DECODE)["load_ms"] - last)
    for leg in background:
        node.finish(leg)
    record_property("load, p50 ms", round(statistics.median(times), 3))
    record_property("load, max ms", round(max(times), 3))
    alone = [node.whole(DECODE, prompt(60, 900 + i), 400).tokens for i in range(4)]
    same = sum(node.answers[leg].tokens == t for leg, t in zip(background, alone, strict=True))
    record_property("background equal", f"{same} of 4")
    assert node.cache_is_free(DECODE)


@pytest.mark.twin("tests/engine/vllm/test_connector_worker.py")
def test_abort(node, record_property):
    """aborts, of a decode leg and while its KV is fetched, leave no block in use"""
    for i in range(8):
        one = prompt(1500, 3000 + i)
        handoff = node.prefill(PREFILL, one)
        leg = node.add(DECODE, one, 200, **handoff)
        if i % 2:
            node.started(leg)
        node.abort(DECODE, leg)  # which nobody answers
        node.release(handoff)
    assert any(node.cache_is_free(DECODE) for _ in range(200))
    assert any(node.cache_is_free(PREFILL) for _ in range(200))
    record_property("leases left", node.stats(PREFILL)["leased"])
    assert node.stats(PREFILL)["leased"] == 0


@pytest.mark.twin(
    f"{HANDOFFS}::test_the_owners_end_poisons_ipc_memory_and_leaves_what_was_mapped_by_descriptor"
)
def test_kill_and_resume(node, engines, gpu, record_property):
    """an engine is killed: its handoffs are recomputed, and its stream goes on elsewhere"""
    engines.start(VICTIM, KvSpec())
    node.wait_ready(VICTIM)
    one, other = prompt(300, 41), prompt(300, 42)
    expected = {key: node.whole(DECODE, p, 48).tokens for key, p in (("a", one), ("b", other))}
    assert node.cache_is_free(DECODE)
    warm = node.prefill(VICTIM, one)
    node.decode(DECODE, one, 2, warm)
    lost = node.prefill(VICTIM, other)
    streaming = node.add(VICTIM, one, 400)
    node.produced(streaming, 20)
    victim = node.processes[VICTIM]
    victim.kill()
    victim.join()
    before = node.stats(DECODE)["load_failures"]
    recomputed = node.decode(DECODE, other, 48, lost).tokens
    assert node.stats(DECODE)["load_failures"] - before == 1
    sent = node.answers[streaming].tokens[:20]
    left = 48 - len(sent)
    resumed = node.finish(
        node.ask(DECODE, one, max_tokens=left + len(sent), extra_args={RESUMED: sent})
    )
    record_property("recomputed equal", recomputed == expected["b"])
    record_property("resumed behind", len(sent))
    record_property("resumed equal", [*sent, *resumed.tokens] == expected["a"])
    assert len(sent) + len(resumed.tokens) == 48
    if gpu.is_fake:  # where a near tie cannot fall the other way
        assert recomputed == expected["b"]
        assert [*sent, *resumed.tokens] == expected["a"]
    healthy = node.prefill(PREFILL, prompt(200, 43))
    loads = node.stats(DECODE)["loads"]
    node.decode(DECODE, prompt(200, 43), 4, healthy)
    node.release(healthy)
    assert node.stats(DECODE)["loads"] == loads + 1
    assert node.stats(DECODE)["load_failures"] - before == 1


@pytest.mark.twin(
    "tests/engine/vllm/test_host_tier.py::test_another_engine_loads_what_one_has_computed"
)
def test_host_tier(node, engines, gpu, record_property):
    """the host tier: one engine loads what another one has computed, from pinned memory"""
    address = f"ipc://{node.folder}/tier"
    tier = PlainBlockManager(address)
    try:
        kv = KvSpec(tier_address=address)
        for generation in (TIERED, TIERED_TOO):
            engines.start(generation, kv, prefix_caching_hash_algo="sha256_cbor")
        node.wait_ready(TIERED, TIERED_TOO)
        one = prompt(1500, 77)
        first = node.whole(TIERED, one, MAX_TOKENS)
        tier.wait_until(lambda: len(tier.index) > 40)
        path = node.call(TIERED_TOO, "nodeserve_probe_tier")  # which pins
        second = node.whole(TIERED_TOO, one, MAX_TOKENS)
        stats = node.call(TIERED_TOO, "nodeserve_tier_stats")
        record_property("tokens from the tier", second.prefill["num_external_cached_tokens"])
        rate = stats["load_bytes"] / max(stats["load_ms"], 1e-6) / 1e6
        text = f"{stats['load_bytes'] >> 10} KiB in {stats['load_ms']:.2f} ms, {rate:.2f} GB/s"
        record_property("onboarded", text)
        for name, figure in path.items():
            record_property(name, figure)
        record_property("equal", second.tokens == first.tokens)
        assert second.prefill["num_external_cached_tokens"] > 1400
        assert path["transport"] == "pinned_host"
        assert stats["unpinned_bytes"] == 0
        assert node.call(TIERED, "nodeserve_tier_stats")["unpinned_bytes"] == 0
        assert second.tokens == first.tokens or not gpu.is_fake
    finally:
        tier.close()


@pytest.mark.twin("tests/engine/vllm/test_kv_probe.py")
def test_probe(node, record_property):
    """the start-up probe, engine to engine"""
    found = node.call(DECODE, "nodeserve_probe", node.call(PREFILL, "nodeserve_pools"))
    for name, figure in found.items():
        record_property(name, figure)
    assert "error" not in found
