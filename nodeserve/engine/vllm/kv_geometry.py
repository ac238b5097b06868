"""What the bytes of a KV page are, by the attention backend that wrote them.

Knows vLLM's backends by name and needs nothing of vLLM. Every layer's view of the pool is
``[num_kernel_blocks, heads, tokens, content]`` since vLLM 0.32, but what a kernel does with a
head's tokens is its own affair: a page is divided only where it is known here how.
"""

from dataclasses import dataclass
from typing import Final

from nodeserve.errors import ConfigError
from nodeserve.kv.layout import HeadRange, Plane

TOKEN_ROWS: Final = frozenset(
    {
        *("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION"),
        *("CPU_MLA", "TRITON_MLA", "FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "CUTLASS_MLA"),
    }
)
"""Backends that keep a token of a head in one piece, at the strides of the view.

Source: ``split(head_size, dim=-1)`` and ``view(.., 2, head_size)`` of the cache in
vllm/v1/attention/backends/{flash_attn,triton_attn,flashinfer,flex_attention}.py, and
``concat_and_cache_mla`` behind the others (0.32).
"""

COLUMNS: Final = frozenset({"vec", "vec16"})
"""Instruction sets of CPU_ATTN that keep keys as ``[head_dim, block]``, values as ``[block, ..]``.

Source: reshape_and_cache in csrc/cpu/cpu_attn_vec.hpp (0.32). AMX mixes tokens in tiles and could
not be tried where this was written; it and the others keep a head's page together.
"""

CPU_ATTENTION: Final = "CPU_ATTN"


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What vLLM says of a layer's KV in one block of its attention kernel.

    ``tokens`` is how many tokens the block is for, ``isa`` the CPU backend's instruction set.
    ``kv_heads`` is how many of the model's KV heads the rank
    has, which ``heads``, the view's second dimension, may not be. ``latent`` says that every rank
    has the same: MLA. Strides are in bytes.
    """

    backend: str
    isa: str | None
    dtype: str
    heads: int
    tokens: int
    content_bytes: int
    element_bytes: int
    block_stride: int
    head_stride: int
    token_stride: int
    kv_heads: int
    latent: bool

    @property
    def page_bytes(self) -> int:
        """What the block holds of the layer."""
        return self.heads * self.tokens * self.content_bytes

    @property
    def kind(self) -> str:
        """A name for what the bytes mean, the same wherever they mean the same."""
        if self._is_columns():
            return f"key columns and value rows of {self.dtype}"
        if self._is_token_rows():
            return f"token rows of {self.dtype}"
        return " ".join(filter(None, (self.backend, self.isa, self.dtype)))

    @property
    def divides_by_token(self) -> bool:
        """Whether workers with other block sizes can read a page."""
        return self._is_token_rows() or self._is_columns()

    def divides_by_head(self, num_ranks: int, total_kv_heads: int) -> bool:
        """Return whether workers of other tensor parallel sizes can read a page."""
        if self._is_latent():
            return True
        whole = max(total_kv_heads, num_ranks) % min(total_kv_heads, num_ranks) == 0
        count = max(1, total_kv_heads // num_ranks)
        return whole and self.kv_heads == self.heads == count and self._has_heads()

    def head_range(self, rank: int, num_ranks: int, total_kv_heads: int) -> HeadRange:
        """Return which heads the rank has; one of its own where pages cannot be cut by head.

        As vLLM's QKVParallelLinear gives heads to ranks.
        """
        if not self.divides_by_head(num_ranks, total_kv_heads):
            return HeadRange(rank, 1, num_ranks)
        if self._is_latent():
            return HeadRange(0, 1, 1, rank, num_ranks)
        count = max(1, total_kv_heads // num_ranks)
        replicas = max(1, num_ranks // total_kv_heads)
        return HeadRange(rank // replicas * count, count, total_kv_heads, rank % replicas, replicas)

    def planes(self, heads: HeadRange) -> tuple[int, tuple[Plane, ...]]:
        """Return the stride of heads in the kernel's block, and what is in each.

        Raises:
            ConfigError: Other layers' bytes lie in between.
        """
        content, head_bytes = self.content_bytes, self.tokens * self.content_bytes
        if heads.count == self.heads and self._is_token_rows():
            return self.head_stride, (Plane(0, 1, 0, 1, self.token_stride, content),)
        if heads.count == self.heads and self._is_columns():
            half, element = content // 2, self.element_bytes
            keys = Plane(0, half // element, self.tokens * element, 1, element, element)
            return self.head_stride, (keys, Plane(head_bytes // 2, 1, 0, 1, half, half))
        if heads.count == self.heads and self.token_stride == content:
            return self.head_stride, (Plane(0, 1, 0, self.tokens, head_bytes, head_bytes),)
        if (
            sorted((self.head_stride * self.heads, self.token_stride * self.tokens))[1]
            > self.page_bytes
        ):
            text = (
                f"KV pages of the attention backend {self.backend} are not in one piece: strides "
                f"of {self.heads} heads and {self.tokens} tokens are {self.head_stride} and "
                f"{self.token_stride} bytes; set VLLM_KV_CACHE_LAYOUT=LBHNC"
            )
            raise ConfigError(text)
        page = self.page_bytes
        return page, (Plane(0, 1, 0, self.tokens, page, page),)

    def _is_latent(self) -> bool:
        return self.latent and self.heads == 1

    def _is_columns(self) -> bool:
        return self._is_head_major_cpu() and self.isa in COLUMNS

    def _is_token_rows(self) -> bool:
        return self.backend in TOKEN_ROWS

    def _is_head_major_cpu(self) -> bool:
        return self.backend == CPU_ATTENTION and self.token_stride == self.content_bytes

    def _has_heads(self) -> bool:
        return self._is_token_rows() or self._is_head_major_cpu()
