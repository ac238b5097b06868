import json
import math

import msgspec
import pytest

from nodeserve.engine.simulated.sizing import size_engine
from nodeserve.errors import ConfigError
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec

LLAMA_70B_FP8 = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "quantization_config": {"quant_method": "fp8"},
}


@pytest.fixture
def make_spec(tmp_path):
    def make(config=LLAMA_70B_FP8, tp=4, simulate="8xh100-sxm", speedup=1.0, **args):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return WorkerSpec(
            name="decode-0",
            generation=9,
            role=Role.DECODE,
            runtime_dir="/run/x",
            control_address="ipc:///run/x/control.sock",
            input_address="ipc:///run/x/in.sock",
            output_address="ipc:///run/x/out.sock",
            kv_events_address="ipc:///run/x/kv.sock",
            engine=EngineSpec(
                model=str(tmp_path),
                served_model_name="m",
                tp=tp,
                args=args,
                simulate=simulate,
                speedup=speedup,
            ),
            kv=KvSpec(async_load=False, lease_ttl_s=7.0),
        )

    return make


def test_known_model_runs_on_measured_step_times(make_spec):
    sizing = size_engine(make_spec())
    assert sizing.profile.name == "llama70b-fp8 on 4 h100-sxm"
    assert "AIConfigurator" in sizing.profile.source
    assert sizing.max_model_len == 131_072
    # 720,000 tokens were computed for 0.95 of the memory; the default is 0.92.
    assert sizing.limits.num_blocks * sizing.limits.block_size == pytest.approx(700_000, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": LLAMA_70B_FP8 | {"num_hidden_layers": 40}},
        {"simulate": "8xb200-sxm"},
        {"kv_cache_dtype": "fp8"},
    ],
)
def test_what_was_not_measured_runs_on_the_roofline(make_spec, changes):
    assert size_engine(make_spec(**changes)).profile.source == "roofline"


def test_vllms_arguments_are_obeyed(make_spec):
    limits = size_engine(
        make_spec(
            block_size=32,
            enable_prefix_caching=False,
            max_model_len=4096,
            max_num_batched_tokens=512,
            max_num_seqs=64,
            num_gpu_blocks_override=200,
            speedup=math.inf,
        )
    ).limits
    assert (limits.block_size, limits.num_blocks, limits.block_bytes) == (32, 200, 32 * 327_680)
    assert (limits.max_num_batched_tokens, limits.max_num_seqs) == (512, 64)
    assert not limits.prefix_caching
    assert not limits.async_load
    assert (limits.lease_ttl_s, limits.generation, limits.speedup) == (7.0, 9, math.inf)


def test_quantization_argument_shrinks_the_weights(make_spec):
    config = {key: value for key, value in LLAMA_70B_FP8.items() if key != "quantization_config"}
    plain = size_engine(make_spec(config=config, max_model_len=4096))
    fp8 = size_engine(make_spec(config=config, max_model_len=4096, quantization="fp8"))
    assert fp8.limits.num_blocks > plain.limits.num_blocks
    assert fp8.profile.name == "llama70b-fp8 on 4 h100-sxm"


def test_ready_map_says_what_the_engine_is(make_spec):
    sizing = size_engine(make_spec(max_model_len=4096))
    ready = msgspec.msgpack.decode(msgspec.msgpack.encode(sizing.ready_map("decode-0-9")))
    assert ready["num_gpu_blocks"] == sizing.limits.num_blocks
    assert (ready["max_model_len"], ready["tensor_parallel_size"]) == (4096, 4)
    assert ready["instance_id"] == "decode-0-9"


@pytest.mark.vllm
def test_ready_map_has_the_fields_of_vllms(make_spec):
    engine = pytest.importorskip("vllm.v1.engine")
    ready = size_engine(make_spec(max_model_len=4096)).ready_map("x")
    assert set(ready) == set(engine.EngineCoreReadyResponse.__dataclass_fields__)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tp": 1}, "needs 8192 KV blocks, .* fit beside the weights on 1 of 8xh100-sxm; lower"),
        ({"block_size": 0}, "block_size is 0; give a whole number above 0"),
        ({"max_model_len": "auto"}, "max_model_len is 'auto'"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"max_num_seqs": 9000}, "max_num_batched_tokens 8192 is below max_num_seqs 9000"),
        ({"speedup": 0.0}, "speedup is 0"),
        ({"speedup": math.nan}, "speedup is nan"),
        ({"simulate": "8xh900"}, "'h900' is unknown"),
        ({"config": [1]}, "holds no JSON object"),
    ],
)
def test_what_can_never_work_is_refused_with_numbers(make_spec, changes, what):
    with pytest.raises(ConfigError, match=what):
        size_engine(make_spec(**changes))


def test_missing_config_is_refused_by_path(make_spec, tmp_path):
    spec = make_spec()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        size_engine(spec)
