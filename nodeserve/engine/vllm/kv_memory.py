"""Puts vLLM's KV cache where peers can read it, and describes where it lies.

vLLM allocates a worker's whole KV cache with one ``torch.zeros`` of int8 inside the connector's
memory pool context (vllm/v1/worker/utils.py:596 and vllm/v1/worker/gpu_worker.py:879, 0.32).
"""

import ctypes
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    KVCacheConfig,
    KVCacheTensor,
    UniformTypeKVCacheSpecs,
)

from nodeserve.engine.vllm import kv_groups
from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.engine.vllm.kv_geometry import LayerFacts
from nodeserve.errors import InvariantError
from nodeserve.kv import layout
from nodeserve.kv.layout import LayerPlace, PoolGeometry
from nodeserve.transfer.base import Copier, Fence, Handle, Importer
from nodeserve.transfer.first_touch import in_background, touch_mapped
from nodeserve.transfer.host_copier import HostCopier
from nodeserve.transfer.shared_memory import TRANSPORT, SharedMemory, SharedMemoryImporter


@dataclass(frozen=True, slots=True)
class RankFacts:
    """Which rank of how many, and what is in its pool.

    ``layers`` are vLLM's attention modules by name; they know their backend.
    """

    rank: int
    num_ranks: int
    total_kv_heads: int
    layers: Mapping[str, Any]

    @classmethod
    def of(cls, config: VllmConfig, rank: int) -> "RankFacts":
        """Return what ``config`` says of tensor parallel rank ``rank``."""
        return cls(
            rank=rank,
            num_ranks=config.parallel_config.tensor_parallel_size,
            total_kv_heads=config.model_config.get_total_num_kv_heads(),
            layers=config.compilation_config.static_forward_context,
        )


class HostKvMemory(TorchFunctionMode):
    """As a context, makes vLLM's KV allocation a memfd; afterwards, the pool that lies in it."""

    def __init__(self, pool_bytes: int) -> None:
        """Wait for the one allocation of ``pool_bytes`` bytes."""
        super().__init__()
        self._pool_bytes = pool_bytes
        self._memory: SharedMemory | None = None
        self._pool: torch.Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer vLLM's allocation with shared memory and everything else as torch does."""
        kwargs = kwargs or {}
        wanted = func is torch.zeros and kwargs.get("dtype") is torch.int8
        if not wanted or args != (self._pool_bytes,) or self._pool is not None:
            return func(*args, **kwargs)
        self._pool = self._allocate(lambda: func(*args, **kwargs))
        return self._pool

    def describe(
        self, config: KVCacheConfig, views: dict[str, torch.Tensor], ranks: RankFacts
    ) -> PoolDescription:
        """Return what a peer needs to read the pool.

        Args:
            config: This rank's, with the places of the layers.
            views: vLLM's tensor per layer, ``[num_blocks, heads, block_size, content]`` each;
                with kernels of smaller blocks more of them.
            ranks: Who has which heads.

        Raises:
            InvariantError: vLLM did not allocate as expected, so nothing can be handed over.
        """
        first = next(iter(views.values())).untyped_storage().data_ptr()
        if self._pool is None or first != self._pool.data_ptr():
            raise InvariantError(
                "vLLM's KV cache is not where peers can read it: its allocation has changed; "
                "install the vLLM release that this nodeserve pins"
            )
        return PoolDescription(
            handle=self._export(),
            geometry=layout.to_plain(_geometry(config, views, self._pool_bytes, ranks)),
        )

    @property
    def pool_address(self) -> int:
        """Where the pool begins in this process."""
        return self._pool.data_ptr()

    def copier(self) -> Copier:
        """Return what copies between the pool and host memory."""
        return HostCopier()

    def fence(self) -> Fence | None:
        """Return a point behind all work asked for so far; None where work is done when asked."""
        return None

    def follow(self, fence: Fence | None) -> None:
        """Let what importers copy from now on begin behind ``fence``."""

    def importers(self) -> dict[str, Importer]:
        """Return, by transport, what copies peers' blocks into this pool."""
        return self.importers_into(self.pool_address, self._pool_bytes)

    def importers_into(self, address: int, num_bytes: int) -> dict[str, Importer]:
        """Return the same for other memory of this process."""
        return {TRANSPORT: SharedMemoryImporter(address, num_bytes)}

    @contextmanager
    def scratch(self, num_bytes: int) -> Generator[tuple[int, int]]:
        """Give memory of the pool's kind for a while: where it begins, and how much it is.

        Raises:
            PeerError: There is too little to measure with.
        """
        memory = (ctypes.c_char * num_bytes)()
        yield ctypes.addressof(memory), num_bytes

    def _allocate(self, as_torch_does: Callable[[], torch.Tensor]) -> torch.Tensor:  # noqa: ARG002
        """Return the pool, all zeros."""
        self._memory = SharedMemory("nodeserve-kv", self._pool_bytes)
        pool = torch.from_file(
            self._memory.path, shared=True, size=self._pool_bytes, dtype=torch.int8
        )
        in_background("kv", partial(touch_mapped, pool.data_ptr(), self._pool_bytes))
        return pool

    def _export(self) -> Handle:
        return self._memory.handle()


def undivided(
    config: KVCacheConfig, views: dict[str, torch.Tensor], ranks: RankFacts
) -> dict[str, str]:
    """Return by what pages cannot be divided, ``heads`` or ``tokens``, each with their kind."""
    found = {}
    for _, _, facts in _layers(config, views, ranks):
        if not facts.divides_by_head(ranks.num_ranks, ranks.total_kv_heads):
            found["heads"] = facts.kind
        if not facts.divides_by_token:
            found["tokens"] = facts.kind
    return found


def _layers(
    config: KVCacheConfig, views: dict[str, torch.Tensor], ranks: RankFacts
) -> Iterator[tuple[KVCacheTensor, int, LayerFacts]]:
    """Yield like layers, with their KV cache group and what vLLM says of them."""
    groups = config.kv_cache_groups
    for tensor in config.kv_cache_tensors:
        name = tensor.layers[0]
        number = next(i for i, group in enumerate(groups) if name in group.layer_names)
        spec = groups[number].kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = spec.kv_cache_specs[name]
        yield tensor, number, _layer_facts(spec, views[name], ranks.layers[name])


def _geometry(
    config: KVCacheConfig, views: dict[str, torch.Tensor], pool_bytes: int, ranks: RankFacts
) -> PoolGeometry:
    places, kinds = [], []
    for tensor, number, facts in _layers(config, views, ranks):
        heads = facts.head_range(ranks.rank, ranks.num_ranks, ranks.total_kv_heads)
        head_stride, planes = facts.planes(heads)
        places.append(
            LayerPlace(
                num_layers=len(tensor.layers),
                layer_stride=tensor.layer_stride,
                block_stride=tensor.block_stride,
                offset=tensor.offset,
                heads=heads,
                head_stride=head_stride,
                chunk_tokens=facts.tokens,
                chunk_stride=facts.block_stride,
                planes=planes,
                group=number,
            )
        )
        divides = facts.divides_by_head(ranks.num_ranks, ranks.total_kv_heads)
        kinds.append(facts.kind if divides else f"{facts.kind} of {ranks.num_ranks} ranks")
    return PoolGeometry(
        places=tuple(places),
        block_sizes=tuple(group.kv_cache_spec.block_size for group in config.kv_cache_groups),
        num_blocks=config.num_blocks,
        pool_bytes=pool_bytes,
        page_format="; ".join([*kinds, *map(kv_groups.kind, config.kv_cache_groups)]),
    )


def _layer_facts(spec: AttentionSpec, view: torch.Tensor, layer: Any) -> LayerFacts:
    _, heads, tokens, content = view.shape
    size = view.element_size()
    block_stride, head_stride, token_stride, _ = (stride * size for stride in view.stride())
    return LayerFacts(
        backend=layer.get_attn_backend().get_name(),
        isa=getattr(layer, "isa", None),
        dtype=str(view.dtype).removeprefix("torch."),
        heads=heads,
        tokens=tokens,
        content_bytes=content * size,
        element_bytes=size,
        block_stride=block_stride,
        head_stride=head_stride,
        token_stride=token_stride,
        kv_heads=spec.num_kv_heads,
        latent=spec.max_tp_shards == 1,
    )
