import json

import pytest

from tests.gateway.weightless_model import write_model
from tests.support.daemon import daemon

pytestmark = pytest.mark.vllm  # the gateway is vLLM's

BIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}


@pytest.fixture
def too_big(tmp_path):
    """A model that no single H100 holds."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BIG))
    return folder


def test_a_node_that_cannot_start_keeps_its_logs_and_says_why(too_big, tmp_path):
    with daemon(tmp_path, str(too_big), "--simulate", "1xh100-sxm") as node:
        assert node.process.wait(60) == 78
        said = node.wait_for_line("error: worker aggregated-0 failed to start: ")
    assert "1xh100-sxm" in said
    left = {str(path.relative_to(tmp_path)) for path in (tmp_path / "api.sock.d").rglob("*")}
    assert "api.sock.d/logs/aggregated-0.log" in left
    assert not [name for name in left if name.endswith((".sock", "lock"))]
    assert not (tmp_path / "api.sock").exists()


def test_the_next_node_starts_over_what_was_kept(too_big, tmp_path):
    old = tmp_path / "api.sock.d" / "logs" / "of-an-old-node.log"
    old.parent.mkdir(parents=True, mode=0o700)
    old.parent.parent.chmod(0o700)
    old.write_text("old")
    with daemon(tmp_path, str(too_big), "--simulate", "4xh100-sxm", "--aggregated", "1") as node:
        assert node.process.wait(60) == 78
    assert not old.exists()


def test_a_node_that_is_stopped_leaves_nothing(tmp_path):
    model = write_model(tmp_path / "model")
    with daemon(tmp_path, str(model), "--simulate", "1xh100-sxm") as node:
        node.wait_ready()
        assert node.stop() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
