"""A vLLM engine in a process of its own: it says what it is, and stops when told to."""

import msgspec
import pytest
import zmq

from nodeserve.wire.spawn import KvSpec
from tests.engine.vllm.conftest import ASYNC, SYNC
from tests.support import vllm_entry
from tests.support.vllm_node import EngineRefusedError

pytestmark = pytest.mark.vllm

STOPPED, REFUSED, WINDOWED, ALONE, ONE_GROUP = 31, 32, 33, 34, 35


def test_a_ready_engine_says_what_the_dispatcher_needs(node) -> None:
    ready = node.ready[ASYNC]
    payload = msgspec.msgpack.decode(ready.ready)
    assert payload["max_model_len"] == ready.max_model_len == 2048
    assert payload["num_gpu_blocks"] == ready.num_gpu_blocks == 512
    assert ready.block_size == 32
    # 4 layers, key and value, 32 tokens, 2 heads of 64, float32.
    assert ready.kv_block_bytes == 4 * 2 * 32 * 2 * 64 * 4
    assert ready.kv_events_endpoint == f"ipc://{node.folder}/kv-{ASYNC}"
    assert ready.features == ("handoff", "probe", "resume")


def test_generations_differ_on_the_wire_only_in_their_identity(node) -> None:
    assert node.ready[ASYNC].fields == node.ready[SYNC].fields
    assert node.ready[ASYNC].fields.vllm_version == "0.32.0"


def test_sigterm_ends_a_busy_engine_with_status_0(node) -> None:
    node.start(node.spec(STOPPED, KvSpec(), {}))
    node.wait_ready(STOPPED)
    leg = node.add(STOPPED, list(range(5, 100)), 1900)
    node.started(leg)
    process = node.processes[STOPPED]
    process.terminate()
    process.join(15)
    assert process.exitcode == 0


def test_an_engine_that_refuses_its_settings_exits_as_a_config_error(node) -> None:
    node.start(node.spec(REFUSED, KvSpec(), {"pipeline_parallel_size": 2}))
    with pytest.raises(EngineRefusedError, match=r"ConfigError: engine\.args\.pipeline"):
        node.wait_ready(REFUSED)
    node.processes[REFUSED].join(15)
    assert node.processes[REFUSED].exitcode == 78


WINDOWS = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 64}


def test_loads_that_windows_cannot_have_are_refused_by_name(node) -> None:
    node.start(node.spec(WINDOWED, KvSpec(async_load=False), {"hf_overrides": WINDOWS}))
    match = r"ConfigError.*kv\.async_load = false .* full attention, a sliding window of 64 tokens"
    with pytest.raises(EngineRefusedError, match=match):
        node.wait_ready(WINDOWED)


def test_a_model_with_sliding_windows_hands_over_as_one_group(node) -> None:
    args = {"hf_overrides": WINDOWS, "disable_hybrid_kv_cache_manager": True}
    node.start(node.spec(ONE_GROUP, KvSpec(async_load=False), args))
    node.wait_ready(ONE_GROUP)
    prompt = list(range(5, 105))
    handoff = node.prefill(ONE_GROUP, prompt)
    (group,) = handoff["groups"]
    assert len(group["blocks"]) == 4
    node.release(handoff)


def test_an_engine_without_the_connector_serves_whole_requests(node) -> None:
    node.start_as(vllm_entry.run_engine_without_connector, node.spec(ALONE, KvSpec(), {}))
    node.wait_ready(ALONE)
    ready, other = node.ready[ALONE], node.ready[ASYNC]
    assert ready.features == ("resume",)
    assert (ready.kv_block_bytes, ready.num_gpu_blocks) == (other.kv_block_bytes, 512)
    prompt = list(range(5, 105))
    assert node.whole(ALONE, prompt, 8).tokens == node.whole(ASYNC, prompt, 8).tokens
    assert node.call(ALONE, "nodeserve_release", [1]) is None
    assert set(node.stats(ALONE)) == set(node.stats(ASYNC))
    assert set(node.stats(ALONE).values()) == {0}


def stored_hashes(subscriber: zmq.Socket[bytes]) -> set[bytes]:
    """Return the block hashes in the events that have arrived."""
    hashes: set[bytes] = set()
    while subscriber.poll(0):
        _, sequence, batch = subscriber.recv_multipart()
        assert len(sequence) == 8
        _, events, *_ = msgspec.msgpack.decode(batch)
        hashes.update(*(e["block_hashes"] for e in events if e["type"] == "BlockStored"))
    return hashes


def test_computed_and_pulled_blocks_are_published_under_the_same_hashes(node) -> None:
    subscribers = []
    for generation in (ASYNC, SYNC):
        subscriber = zmq.Context.instance().socket(zmq.SUB)
        subscriber.subscribe(b"")
        subscriber.connect(node.ready[generation].kv_events_endpoint)
        subscribers.append(subscriber)
    computed: set[bytes] = set()
    pulled: set[bytes] = set()
    for first in range(5, 200):  # what is published before we are connected is lost
        prompt = [first, *range(5, 105)]
        handoff = node.prefill(ASYNC, prompt)
        node.decode(SYNC, prompt, 1, handoff)
        node.release(handoff)
        computed |= stored_hashes(subscribers[0])
        pulled |= stored_hashes(subscribers[1])
        if computed & pulled:
            break
    assert computed & pulled
    for subscriber in subscribers:
        subscriber.close(linger=0)
