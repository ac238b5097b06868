import tomllib

import pytest

from nodeserve.config.layout import Wish
from nodeserve.config.node import GatewayKind
from nodeserve.config.show import to_toml
from tests.config.conftest import node_of


@pytest.mark.parametrize(
    ("flags", "node"),
    [
        ({}, node_of(0, 2)),
        ({"wish": Wish(decode=3)}, node_of(0, 16)),
        ({"wish": Wish(tp_prefill=4, tp_decode=4)}, node_of(8, 2)),
        ({"listen": "[::1]:8000", "gateway": GatewayKind.RUST}, node_of(0, 2)),
        ({"simulate": "8xh100-sxm", "speedup": float("inf")}, node_of(0, 2)),
        (
            {
                "vllm_args": (
                    *("--hf-overrides", '{"a": {"b c": [1, 2.5, true, "\\u007f\\"\\\\\\n"]}}'),
                    *("--chat-template", "{% if x %}\n", "--enforce-eager"),
                )
            },
            node_of(1, 2),
        ),
    ],
)
def test_a_shown_configuration_loads_as_itself(load, flags, node):
    config = load(node=node, **flags)
    assert load(to_toml(config), node=node) == config


def test_a_shown_configuration_is_toml(load):
    shown = tomllib.loads(to_toml(load()))
    assert shown["kv"] == {
        "async_load": True,
        "load_at_once_bytes": 16 << 20,
        "lease_ttl_s": 60.0,
        "gpu_transport": "cuda_ipc",
    }
    assert [worker["role"] for worker in shown["workers"]] == ["prefill", "decode"]
