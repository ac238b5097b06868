"""Handoffs between engines whose KV lies in GPU memory, on the fake driver: real vLLM on the CPU.

The twin of what tests/gpu does with one GPU.
"""

import functools
import random
import signal
import tempfile
from pathlib import Path

import pytest

from nodeserve.wire.spawn import KvSpec
from tests.support import vllm_entry
from tests.support.fake_driver import build
from tests.support.vllm_node import VllmNode

pytestmark = pytest.mark.vllm

PREFILL, DECODE, SYNC, VMM_PREFILL, VMM_DECODE, VICTIM = 1, 2, 3, 4, 5, 6
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("fake-cuda"))


@pytest.fixture(scope="module")
def gpu_node(vllm_context, tiny_model, library):
    folder = Path(tempfile.mkdtemp(prefix="ns-"))
    node = VllmNode(vllm_context, folder, tiny_model)
    node.on_fake_gpu = functools.partial(vllm_entry.run_engine_on_fake_gpu, str(library))
    try:
        for generation, kv in {
            PREFILL: KvSpec(),
            DECODE: KvSpec(),
            SYNC: KvSpec(async_load=False),
            VMM_PREFILL: KvSpec(gpu_transport="cuda_vmm"),
            VMM_DECODE: KvSpec(gpu_transport="cuda_vmm"),
        }.items():
            node.start_as(node.on_fake_gpu, node.spec(generation, kv, {}))
        node.wait_ready(PREFILL, DECODE, SYNC, VMM_PREFILL, VMM_DECODE)
        yield node
    finally:
        node.close()


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(11)
    return [[rng.randrange(5, 260) for _ in range(n)] for n in (1, 31, 33, 100, 700, 1500)]


@pytest.fixture(scope="module")
def expected(gpu_node, prompts):
    return [gpu_node.whole(PREFILL, prompt, MAX_TOKENS).tokens for prompt in prompts]


@pytest.mark.parametrize(
    ("prefill", "decode", "transport"),
    [
        (PREFILL, DECODE, "cuda_ipc"),
        (PREFILL, SYNC, "cuda_ipc"),
        (VMM_PREFILL, VMM_DECODE, "cuda_vmm"),
        (VMM_PREFILL, DECODE, "cuda_vmm"),
        (PREFILL, VMM_DECODE, "cuda_ipc"),
    ],
)
def test_handed_over_prompts_get_the_tokens_of_one_engine(
    gpu_node, prompts, expected, prefill, decode, transport
):
    assert gpu_node.cache_is_free(decode)
    before = gpu_node.stats(decode)
    for prompt, tokens in zip(prompts, expected, strict=True):
        handoff = gpu_node.prefill(prefill, prompt)
        assert handoff["pools"][0]["handle"]["transport"] == transport
        answer = gpu_node.decode(decode, prompt, MAX_TOKENS, handoff)
        assert answer.tokens == tokens
        assert answer.prefill["num_external_cached_tokens"] == len(prompt) - 1
        gpu_node.release(handoff)
    after = gpu_node.stats(decode)
    assert after["loads"] - before["loads"] == len(prompts) - 1  # one has a single token
    assert after["load_failures"] == before["load_failures"]
    assert after["load_bytes"] > before["load_bytes"]


@pytest.mark.parametrize(
    ("kv", "decode", "failures"),
    [(KvSpec(), DECODE, 1), (KvSpec(gpu_transport="cuda_vmm"), VMM_DECODE, 0)],
)
def test_the_owners_end_poisons_ipc_memory_and_leaves_what_was_mapped_by_descriptor(
    gpu_node, prompts, expected, kv, decode, failures
):
    victim = VICTIM + decode
    gpu_node.start_as(gpu_node.on_fake_gpu, gpu_node.spec(victim, kv, {}))
    gpu_node.wait_ready(victim)
    first, second = (gpu_node.prefill(victim, prompt) for prompt in prompts[3:5])
    assert gpu_node.cache_is_free(decode)
    assert gpu_node.decode(decode, prompts[3], MAX_TOKENS, first).tokens == expected[3]
    process = gpu_node.processes[victim]
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = gpu_node.stats(decode)
    # Nothing was read of what is gone, or the device would be broken for good.
    assert gpu_node.decode(decode, prompts[4], MAX_TOKENS, second).tokens == expected[4]
    assert gpu_node.stats(decode)["load_failures"] - before["load_failures"] == failures
    healthy = gpu_node.prefill(PREFILL, prompts[5])
    assert gpu_node.decode(decode, prompts[5], MAX_TOKENS, healthy).tokens == expected[5]
    gpu_node.release(healthy)


@pytest.mark.parametrize(
    ("source", "destination", "transport"),
    [(PREFILL, DECODE, "cuda_ipc"), (VMM_PREFILL, DECODE, "cuda_vmm")],
)
def test_an_engine_measures_how_fast_it_reads_a_peers_gpu_memory(
    gpu_node, source, destination, transport
):
    pools = gpu_node.call(source, "nodeserve_pools")
    found = gpu_node.call(destination, "nodeserve_probe", pools)
    assert found["transport"] == transport
    assert found["gbps_64mb"] > 0


def test_an_engine_is_not_handed_its_own_memory(gpu_node):
    pools = gpu_node.call(PREFILL, "nodeserve_pools")
    found = gpu_node.call(PREFILL, "nodeserve_probe", pools)
    assert "handed its own GPU memory" in found["error"]
