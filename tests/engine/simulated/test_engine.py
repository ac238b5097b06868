import json
import threading

import msgspec
import pytest
import zmq

from nodeserve.engine.simulated.engine import SimulatedEngine
from nodeserve.engine.simulated.wire import FIELDS
from nodeserve.errors import ConfigError, InvariantError
from nodeserve.wire.spawn import EngineSpec
from tests.support.engine_front_end import worker_spec

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": 264,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    engine = EngineSpec(
        model=str(tmp_path), served_model_name="m", tp=1, args={}, simulate="1xh100-sxm"
    )
    return worker_spec(tmp_path / "s", "w", 300, engine)


@pytest.fixture
def progress():
    return []


@pytest.fixture
def engine(spec, progress):
    return SimulatedEngine(spec, progress.append)


def test_start_says_ready_under_the_generation_as_identity(spec, engine, progress):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(spec.input_address)
    ready = engine.start()
    assert router.poll(10_000)
    identity, frame = router.recv_multipart()
    context.destroy(linger=0)
    assert identity == (300).to_bytes(2, "little")
    assert frame == ready.ready
    assert msgspec.msgpack.decode(frame)["num_gpu_blocks"] == ready.num_gpu_blocks
    assert (ready.name, ready.generation, ready.fields) == ("w", 300, FIELDS)
    assert (ready.block_size, ready.max_model_len) == (16, 2048)
    assert ready.kv_block_bytes == 16 * 2 * 4 * 4 * 64 * 2
    assert ready.kv_events_endpoint == spec.kv_events_address
    assert ready.features == ("handoff", "probe", "resume")
    assert progress == [
        "sizing the simulated engine",
        "simulates llama on 1 h100-sxm (roofline)",
    ]
    engine.stop()
    engine.run()


def test_counters_are_zero_before_it_starts(engine):
    assert (engine.steps, engine.num_requests) == (0, 0)


def test_stop_before_start_ends_run_at_once(engine):
    engine.stop()
    engine.start()
    engine.run()


def test_stop_ends_an_idle_engine_from_another_thread(engine):
    engine.start()
    thread = threading.Thread(target=engine.run)
    thread.start()
    engine.stop()
    thread.join(5)
    assert not thread.is_alive()
    engine.stop()


def test_run_before_start_is_a_bug(engine):
    with pytest.raises(InvariantError, match="worker w: engine runs before it was started"):
        engine.run()


def test_bad_model_is_refused_before_anything_is_opened(spec, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="hidden_size is None"):
        SimulatedEngine(spec, print).start()
    assert not list((tmp_path / "s").iterdir())
