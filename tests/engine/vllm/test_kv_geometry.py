"""What the bytes of a KV page are, by the backend that wrote them."""

import dataclasses

import pytest

from nodeserve.engine.vllm.kv_geometry import LayerFacts
from nodeserve.errors import ConfigError
from nodeserve.kv.layout import HeadRange, Plane

HEADS, TOKENS, CONTENT = 2, 32, 256
HND = LayerFacts(
    backend="FLASHINFER",
    isa=None,
    dtype="bfloat16",
    heads=HEADS,
    tokens=TOKENS,
    content_bytes=CONTENT,
    element_bytes=2,
    block_stride=HEADS * TOKENS * CONTENT,
    head_stride=TOKENS * CONTENT,
    token_stride=CONTENT,
    kv_heads=HEADS,
    latent=False,
)
NHD = dataclasses.replace(
    HND, backend="FLASH_ATTN", head_stride=CONTENT, token_stride=HEADS * CONTENT
)
CPU = dataclasses.replace(HND, backend="CPU_ATTN", isa="vec")
AMX = dataclasses.replace(CPU, isa="amx")
MLA = dataclasses.replace(HND, backend="TRITON_MLA", heads=1, kv_heads=1, latent=True)
INDEXER = dataclasses.replace(MLA, backend="DEEPSEEK_V32_INDEXER")
NVFP4 = dataclasses.replace(HND, kv_heads=1)
UNKNOWN = dataclasses.replace(HND, backend="ROCM_ATTN")
PAGE = HEADS * TOKENS * CONTENT


@pytest.mark.parametrize("facts", [HND, NHD, CPU, AMX])
@pytest.mark.parametrize(
    ("rank", "num_ranks", "total", "heads"),
    [
        (0, 1, 2, HeadRange(0, 2, 2)),
        (3, 4, 8, HeadRange(6, 2, 8)),
    ],
)
def test_heads_are_dealt_out_to_ranks_in_order(facts, rank, num_ranks, total, heads) -> None:
    assert facts.head_range(rank, num_ranks, total) == heads


def test_with_more_ranks_than_heads_neighbours_hold_the_same() -> None:
    one = dataclasses.replace(CPU, heads=1, kv_heads=1)
    assert [one.head_range(rank, 4, 2) for rank in range(4)] == [
        HeadRange(0, 1, 2, 0, 2),
        HeadRange(0, 1, 2, 1, 2),
        HeadRange(1, 1, 2, 0, 2),
        HeadRange(1, 1, 2, 1, 2),
    ]


@pytest.mark.parametrize("facts", [MLA, INDEXER])
def test_all_ranks_hold_the_same_latents(facts) -> None:
    assert facts.head_range(2, 4, 1) == HeadRange(0, 1, 1, 2, 4)


@pytest.mark.parametrize(
    ("facts", "num_ranks", "total"), [(NVFP4, 4, 4), (UNKNOWN, 4, 8), (HND, 4, 16), (HND, 4, 6)]
)
def test_pages_that_cannot_be_cut_by_head_are_the_ranks_own(facts, num_ranks, total) -> None:
    assert not facts.divides_by_head(num_ranks, total)
    heads = facts.head_range(1, num_ranks, total)
    assert heads == HeadRange(1, 1, num_ranks)
    assert facts.planes(heads) == (PAGE, (Plane(0, 1, 0, TOKENS, PAGE, PAGE),))


@pytest.mark.parametrize("facts", [HND, NHD, CPU, MLA])
def test_known_pages_can_be_divided(facts) -> None:
    assert facts.divides_by_token
    assert facts.divides_by_head(2, 1 if facts is MLA else 4)


def planes(facts):
    return facts.planes(HeadRange(0, facts.heads, 2))


def test_gpu_backends_keep_a_token_together() -> None:
    assert planes(HND) == (TOKENS * CONTENT, (Plane(0, 1, 0, 1, CONTENT, CONTENT),))
    assert planes(NHD) == (CONTENT, (Plane(0, 1, 0, 1, HEADS * CONTENT, CONTENT),))
    assert planes(MLA) == (TOKENS * CONTENT, (Plane(0, 1, 0, 1, CONTENT, CONTENT),))


def test_cpu_attention_keeps_keys_as_columns() -> None:
    keys = Plane(0, 64, 2 * TOKENS, 1, 2, 2)
    values = Plane(TOKENS * CONTENT // 2, 1, 0, 1, CONTENT // 2, CONTENT // 2)
    assert planes(CPU) == (TOKENS * CONTENT, (keys, values))


@pytest.mark.parametrize("facts", [AMX, INDEXER])
def test_tokens_that_are_mixed_stay_together(facts) -> None:
    head = TOKENS * CONTENT
    assert not facts.divides_by_token
    assert planes(facts) == (TOKENS * CONTENT, (Plane(0, 1, 0, TOKENS, head, head),))


def test_kinds_are_equal_where_bytes_mean_the_same() -> None:
    assert HND.kind == NHD.kind == "token rows of bfloat16"
    assert CPU.kind == dataclasses.replace(CPU, isa="vec16").kind
    kinds = {facts.kind for facts in (HND, CPU, AMX, INDEXER, UNKNOWN)}
    assert len(kinds) == 5
    assert AMX.kind == "CPU_ATTN amx bfloat16"


def test_a_page_with_other_layers_in_between_is_refused_by_name() -> None:
    facts = dataclasses.replace(UNKNOWN, head_stride=9 * TOKENS * CONTENT)
    with pytest.raises(ConfigError, match="ROCM_ATTN are not in one piece"):
        facts.planes(HeadRange(0, 1, 1))
