import json

import pytest

from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.perf_model.request_cost import TYPICAL
from nodeserve.supervisor.token_cost import token_cost
from nodeserve.wire.kinds import Role

SMALL = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "vocab_size": 128256,
}


def node(folder, *workers, simulate=None):
    return NodeConfig(
        model=str(folder),
        served_model_names=("m",),
        runtime_dir="/run/a.sock.d",
        listeners=(Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST),),
        workers=workers,
        simulate=simulate,
    )


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


BOTH = Worker(name="aggregated-0", role=Role.AGGREGATED)


def test_a_small_models_tokens_cost_less_than_a_typical_ones(model):
    cost = token_cost(node(model, BOTH))
    assert 0 < cost.prompt_token_s < TYPICAL.prompt_token_s
    assert cost.prompt_token_s < cost.output_token_s < TYPICAL.output_token_s


def test_a_faster_gpu_costs_less_and_each_role_costs_what_its_workers_do(model):
    h100 = token_cost(node(model, BOTH, simulate="1xh100-sxm"))
    b200 = token_cost(node(model, BOTH, simulate="1xb200-sxm"))
    assert b200.output_token_s < h100.output_token_s
    prefill = Worker(name="prefill-0", role=Role.PREFILL)
    decode = Worker(name="decode-0", role=Role.DECODE, tp=4)
    split = token_cost(node(model, decode, prefill, simulate="8xh100-sxm"))
    assert split.prompt_token_s == h100.prompt_token_s
    assert split.output_token_s > h100.output_token_s


def test_a_model_of_unknown_shape_has_no_cost(tmp_path):
    assert token_cost(node(tmp_path, BOTH)) is None
    (tmp_path / "config.json").write_text("{}")
    assert token_cost(node(tmp_path, BOTH)) is None
