"""Puts vLLM's KV cache where peers can read it, and describes where it lies.

vLLM allocates a worker's whole KV cache with one ``torch.zeros`` of int8 inside the connector's
memory pool context (vllm/v1/worker/utils.py:596 and vllm/v1/worker/gpu_worker.py:879, 0.32).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from vllm.v1.kv_cache_interface import (
    KVCacheConfig,
    UniformTypeKVCacheSpecs,
    is_full_attention_spec,
)

from nodeserve.engine.vllm.handoff import PoolDescription
from nodeserve.errors import ConfigError, InvariantError
from nodeserve.kv import layout
from nodeserve.kv.layout import LayerPlace, PoolGeometry
from nodeserve.transfer.base import Copier, Importer
from nodeserve.transfer.host_copier import HostCopier
from nodeserve.transfer.shared_memory import TRANSPORT, SharedMemory, SharedMemoryImporter


def require_one_group(config: KVCacheConfig) -> None:
    """Refuse models whose KV is more than one group of full attention.

    Raises:
        ConfigError: Naming the groups.
    """
    groups = config.kv_cache_groups
    if len(groups) == 1 and is_full_attention_spec(groups[0].kv_cache_spec):
        return
    kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups) or "none"
    text = (
        f"the model has {len(groups)} KV cache groups ({kinds}): hybrid, sliding-window and "
        "mamba KV groups cannot be handed over; serve a model with full attention only, or try "
        "the engine argument disable_hybrid_kv_cache_manager = true"
    )
    raise ConfigError(text)


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
        self._memory = SharedMemory("nodeserve-kv", self._pool_bytes)
        self._pool = torch.from_file(
            self._memory.path, shared=True, size=self._pool_bytes, dtype=torch.int8
        )
        return self._pool

    def describe(self, config: KVCacheConfig, views: dict[str, torch.Tensor]) -> PoolDescription:
        """Return what a peer needs to read the pool.

        Args:
            config: This rank's, with the places of the layers.
            views: vLLM's tensor per layer, ``[num_blocks, heads, block_size, content]`` each.

        Raises:
            InvariantError: vLLM did not allocate as expected, so nothing can be handed over.
        """
        first = next(iter(views.values())).untyped_storage().data_ptr()
        if self._memory is None or self._pool is None or first != self._pool.data_ptr():
            raise InvariantError(
                "vLLM's KV cache is not in shared memory: its allocation has changed; "
                "install the vLLM release that this nodeserve pins"
            )
        return PoolDescription(
            handle=self._memory.handle(),
            geometry=layout.to_plain(_geometry(config, views, self._pool_bytes)),
        )

    @property
    def pool_address(self) -> int:
        """Where the pool begins in this process."""
        return self._pool.data_ptr()

    def copier(self) -> Copier:
        """Return what copies between the pool and host memory."""
        return HostCopier()

    def importers(self) -> dict[str, Importer]:
        """Return, by transport, what copies peers' blocks into this pool."""
        return {TRANSPORT: SharedMemoryImporter(self._pool.data_ptr(), self._pool_bytes)}


def _geometry(
    config: KVCacheConfig, views: dict[str, torch.Tensor], pool_bytes: int
) -> PoolGeometry:
    (group,) = config.kv_cache_groups
    places, formats = [], []
    for tensor in config.kv_cache_tensors:
        name = tensor.layers[0]
        spec = group.kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = spec.kv_cache_specs[name]
        places.append(
            LayerPlace(
                num_layers=len(tensor.layers),
                layer_stride=tensor.layer_stride,
                block_stride=tensor.block_stride,
                offset=tensor.offset,
                page_bytes=spec.page_size_bytes,
            )
        )
        view = views[name]
        formats.append(f"{view.dtype} {tuple(view.shape[1:])} by {view.stride()[1:]}")
    return PoolGeometry(
        places=tuple(places),
        block_size=group.kv_cache_spec.block_size,
        num_blocks=config.num_blocks,
        pool_bytes=pool_bytes,
        page_format="; ".join(formats),
    )
