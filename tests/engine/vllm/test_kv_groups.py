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
        assert f"of the kind {kind}" in refused[name, True, True]
        assert "serve another model" in refused[name, False, True]
    assert "no KV cache" in refused["none", True, True]


def test_what_windows_cannot_have_is_refused_by_name(ask) -> None:
    refused = ask("refusals")
    groups = "full attention, a sliding window of 40 tokens, chunks of 48 tokens"
    for text in (refused["hybrid", False, True], refused["hybrid", True, False]):
        assert groups in text
    assert "kv.async_load = false does not work" in refused["hybrid", False, True]
    assert "workers differ in block_size" in refused["hybrid", True, False]
    assert ("hybrid", True, True) not in refused
    assert {name for name, *_ in refused}.isdisjoint({"full", "latent", "mixed"})


def test_pages_that_other_workers_could_not_read_are_refused_by_name(ask) -> None:
    refused = ask("undivided")
    assert "'NVFP4' cannot be divided by heads" in refused[False, True]
    assert "differ in tp; give all of them the same" in refused[False, True]
    assert "'CPU_ATTN amx bfloat16' cannot be divided by tokens" in refused[True, False]
    assert "differ in block_size" in refused[True, False]


def test_vllm_keeps_of_a_window_what_we_offer(ask) -> None:
    assert ask("windows") == []


def test_a_tier_takes_groups_whose_blocks_are_of_as_many_tokens(ask) -> None:
    one_size, two_sizes, without_tier = ask("tiers")
    assert (one_size, without_tier) == (None, None)
    assert two_sizes == (
        "worker decode-0: the model's KV blocks are of different numbers of tokens (16 for full "
        "attention, 32 for a sliding window of 40 tokens), the host tier keeps blocks of one; "
        "remove kv.host"
    )
