"""The operator's vLLM arguments: joined, or refused by name."""

import msgspec
import pytest

from nodeserve.engine.vllm.environment import Platform
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import KvSpec
from tests.support import vllm_entry

pytestmark = pytest.mark.vllm

REFUSED = [
    ({"speculative_config": {"model": "x"}}, "speculative_config does not work here"),
    ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2, must be 1"),
    ({"data_parallel_size": 2}, "data_parallel_size is 2, must be 1"),
    ({"decode_context_parallel_size": 2}, "decode_context_parallel_size is 2"),
    ({"kv_transfer_config": {}}, "kv_transfer_config is decided by nodeserve"),
    ({"tensor_parallel_size": 2}, "tensor_parallel_size is decided by nodeserve"),
    ({"kv_offloading_size": 4}, "kv_offloading_size does not work here"),
    ({"runner": "pooling"}, "only generating models"),
    ({"max_modle_len": 5}, "did you mean max_model_len?"),
    ({"max_model_len": -5}, "vLLM refuses its engine arguments"),
    ({"max_model_len": 10**6}, "max_model_len (1000000) is greater than the derived"),
    ({"enable_sleep_mode": True}, "KV that sleeps cannot be read by peers"),
    ({"enable_cumem_allocator": True}, "enable_cumem_allocator"),
    ({"structured_outputs_config": {"backend": "guidance"}}, "agree on xgrammar"),
    ({"structured_outputs_config": "xgrammar"}, "must be a table"),
]


@pytest.fixture(scope="module")
def outcomes(vllm_context, node):
    """What each set of arguments comes to, all tried in one process that has vLLM."""
    ours, theirs = vllm_context.Pipe()
    specs = [node.spec(1, KvSpec(async_load=False), args) for args, _ in REFUSED]
    ours_alone = node.spec(7, KvSpec(async_load=False), {"block_size": 64})
    specs += [ours_alone, ours_alone, msgspec.structs.replace(ours_alone, role=Role.PREFILL)]
    platforms = [Platform.CPU] * (len(REFUSED) + 1) + [Platform.CUDA] * 2
    process = vllm_context.Process(
        target=vllm_entry.configure, args=([*zip(specs, platforms, strict=True)], theirs)
    )
    process.start()
    assert ours.poll(60)
    received = ours.recv()
    process.join(10)
    return received


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[str(a) for a, _ in REFUSED])
def test_an_argument_that_cannot_work_is_refused_by_name(outcomes, index) -> None:
    kind, text = outcomes[index]
    assert (kind, REFUSED[index][1] in text) == ("ConfigError", True), text


def test_the_node_decides_connector_events_executor_and_grammar(outcomes, node) -> None:
    assert outcomes[len(REFUSED)] == {
        "connector": "NodeserveConnector",
        "role": "kv_both",
        "policy": "recompute",
        "extra": {
            "generation": 7,
            "async_load": False,
            "load_at_once_bytes": 16 << 20,
            "lease_ttl_s": 60.0,
            "one_tp": True,
            "one_block_size": True,
            "gpu_transport": "cuda_ipc",
        },
        "events": f"ipc://{node.folder}/kv-7",
        "executor": "uni",
        "grammar": "xgrammar",
        "prefix_caching": True,
        "hashes": "sha256_cbor",
        "block_size": 64,
        "eager": True,
    }


@pytest.mark.parametrize("which", [1, 2])
def test_workers_on_gpus_hand_over_whatever_their_role(outcomes, node, which) -> None:
    facts = outcomes[len(REFUSED) + which]
    assert (facts["connector"], facts["executor"]) == ("NodeserveConnector", "uni")
    assert facts["extra"]["gpu_transport"] == "cuda_ipc"
    assert facts["events"] == f"ipc://{node.folder}/kv-7"
