"""KV pools of every layout, for tests: a geometry, and where each byte lies by another formula.

A model here has ``heads`` KV heads; what a token has of one head are ``CELL`` bytes, of which
the first half is its key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from nodeserve.kv.layout import HeadRange, LayerPlace, Plane, PoolGeometry

CELL = 4
HALF = CELL // 2
LAYERS = 3


@dataclass(frozen=True)
class Shape:
    """How one worker's ranks keep the KV of a model."""

    tp: int
    block_size: int
    heads: int
    page: str = "head_major"
    blocks_outermost: bool = False
    chunk: int = 0
    num_blocks: int = 9

    @property
    def chunk_tokens(self) -> int:
        return self.chunk or self.block_size

    def head_range(self, rank: int) -> HeadRange:
        """As vLLM's QKVParallelLinear gives heads to ranks."""
        if self.tp <= self.heads:
            count = self.heads // self.tp
            return HeadRange(rank * count, count, self.heads)
        replicas = self.tp // self.heads
        return HeadRange(rank // replicas, 1, self.heads, rank % replicas, replicas)

    def geometry(self, rank: int) -> PoolGeometry:
        return PoolGeometry(
            (self.place(rank),), (self.block_size,), self.num_blocks, self.pool_bytes(rank), "f"
        )

    def pool_bytes(self, rank: int) -> int:
        return LAYERS * self.num_blocks * self._page_bytes(rank)

    def _page_bytes(self, rank: int) -> int:
        return self.block_size * self.head_range(rank).count * CELL

    def place(self, rank: int) -> LayerPlace:
        heads, tokens = self.head_range(rank), self.chunk_tokens
        page = self._page_bytes(rank)
        layer, block = page * self.num_blocks, page
        if self.blocks_outermost:
            layer, block = page, page * LAYERS
        head = tokens * CELL
        planes: tuple[Plane, ...]
        match self.page:
            case "head_major":  # FlashInfer's HND
                planes = (Plane(0, 1, 0, 1, CELL, CELL),)
            case "token_major":  # FlashAttention's NHD
                head = CELL
                planes = (Plane(0, 1, 0, 1, CELL * heads.count, CELL),)
            case "columns":  # CPU attention by vector instructions
                keys = Plane(0, HALF, tokens, 1, 1, 1)
                planes = (keys, Plane(HALF * tokens, 1, 0, 1, HALF, HALF))
            case "pairs":  # tiles that mix two tokens, as CPU attention by AMX
                keys = Plane(0, 1, 0, 2, 2 * HALF, 2 * HALF)
                planes = (keys, Plane(HALF * tokens, HALF, tokens, 2, 2, 2))
            case _:
                raise ValueError(self.page)
        return LayerPlace(
            LAYERS, layer, block, 0, heads, head, tokens, tokens * CELL * heads.count, planes
        )

    def bytes_of(
        self, rank: int, layer: int, block: int, token: int
    ) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield, for one token of a block, offsets in the rank's pool with (head, byte)."""
        heads = self.head_range(rank)
        page = self._page_bytes(rank)
        number = (
            block * LAYERS + layer if self.blocks_outermost else layer * self.num_blocks + block
        )
        chunk, t = divmod(token, self.chunk_tokens)
        n = self.chunk_tokens
        start = number * page + chunk * n * CELL * heads.count
        for h, c in product(range(heads.count), range(CELL)):
            match self.page:
                case "head_major":
                    at = (h * n + t) * CELL + c
                case "token_major":
                    at = (t * heads.count + h) * CELL + c
                case "columns":
                    key = c * n + t
                    value = HALF * n + t * HALF + c - HALF
                    at = h * n * CELL + (key if c < HALF else value)
                case _:
                    key = t // 2 * 2 * HALF + c * 2 + t % 2
                    value = HALF * n + (c - HALF) * n + t
                    at = h * n * CELL + (key if c < HALF else value)
            yield start + at, (heads.first + h, c)


def truth(layer: int, token: int, head: int, byte: int) -> int:
    """Return what the model's KV is there, never 0."""
    return hash((layer, token, head, byte)) % 255 + 1


def filled(shape: Shape, rank: int, blocks: list[int], first_token: int = 0) -> bytearray:
    """Return a rank's pool whose ``blocks`` hold the tokens from ``first_token`` on."""
    pool = bytearray(shape.pool_bytes(rank))
    for at, value in expected(shape, rank, blocks, first_token).items():
        pool[at] = value
    return pool


def expected(shape: Shape, rank: int, blocks: list[int], first_token: int = 0) -> dict[int, int]:
    """Return what must lie where in a rank's pool; blocks 0 hold nothing."""
    return {
        at: truth(layer, first_token + index * shape.block_size + token, head, byte)
        for layer, (index, block), token in product(
            range(LAYERS), enumerate(blocks), range(shape.block_size)
        )
        if block
        for at, (head, byte) in shape.bytes_of(rank, layer, block, token)
    }
