"""Which models' KV can be handed over, and which are refused by name."""

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def ask(vllm_context):
    def ask(check):
        ours, theirs = vllm_context.Pipe()
        process = vllm_context.Process(target=vllm_entry.check_kv_groups, args=(check, theirs))
        process.start()
        assert ours.poll(50)
        answer = ours.recv()
        process.join(10)
        return answer

    return ask


def test_kinds_of_kv_that_cannot_be_handed_over_are_refused_by_name(ask) -> None:
    refused = ask("refusals")
    kinds = {"mamba": "MambaSpec", "sinks": "SinkFullAttentionSpec", "compressed": "MLAAttention"}
    for name, kind in kinds.items():
        assert f"of the kind {kind}" in refused[name, True]
        assert "serve another model" in refused[name, False]
    assert "no KV cache" in refused["none", True]
    assert "kv.async_load = false does not work" in refused["hybrid", False]
    assert (
        "full attention, a sliding window of 40 tokens, chunks of 48 tokens"
        in (refused["hybrid", False])
    )
    assert len(refused) == 2 * 4 + 1


def test_vllm_keeps_of_a_window_what_we_offer(ask) -> None:
    assert ask("windows") == []
