"""vLLM's KV cache in GPU memory: exported to peers, and filled from theirs.

Handles, mappings, streams and copies are the driver's own (nodeserve.device, by ctypes), so that
all of it runs against the fake driver of the tests; torch says which stream vLLM computes on and
does copies of many small pieces within one GPU. A batch of copies is one cuMemcpyBatchAsync, the
call behind vLLM's swap_blocks_batch, whose tensors of pointers are not needed for that.

What each of vLLM's model runners (0.32) does, in this order, and what rests on it. V1 is
vllm/v1/worker/kv_connector_model_runner_mixin.py, V2 is vllm/v1/worker/gpu/kv_connector.py and
vllm/v1/worker/gpu/model_runner.py; CUDA runs V2, with asynchronous scheduling.

1. ``get_mem_pool_context`` once, entered around ``allocate_kv_cache`` alone
   (vllm/v1/worker/gpu_worker.py:879; V2: init_kv_cache in gpu/attn_utils.py). None would mean
   vLLM's own pool for sleep mode, which cannot be exported.
2. ``register_kv_caches`` once: V2 from ActiveKVConnector, gpu/kv_connector.py:72, with a view per
   layer by name; not in its profiling run (gpu/model_runner.py:796).
3. Each step ``bind_connector_metadata`` before the forward is asked for, behind the zeroing of
   new blocks (gpu/model_runner.py:1259): the fence of the step's loads is recorded there, of
   handoffs and of what comes from the host tier.
4. ``start_load_kv`` before the forward if a load is not parked, else after it was asked for; V2
   from ``post_forward``, when tokens have been sampled (gpu/model_runner.py:2276). With
   asynchronous scheduling the device has not begun with any of it: hence the fence. Stores to
   the host tier have theirs here, behind the forward.
5. ``wait_for_save``, ``get_transfer_results``, ``get_block_ids_with_load_errors``,
   ``get_kv_connector_stats``, ``get_kv_connector_kv_cache_events``,
   ``build_connector_worker_meta``, ``clear_connector_metadata``; the same in both.
6. A step without tokens does 3 to 5 alone (``no_forward``).

tests/engine/vllm/test_cuda_memory.py holds these orders against the installed source. None of it
has been seen on a GPU.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from vllm.platforms import current_platform

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.device.cuda_vmm import VmmMemory, map_fd, require_vmm
from nodeserve.engine.vllm import index_copies
from nodeserve.engine.vllm.args import GPU_TRANSPORT
from nodeserve.engine.vllm.kv_memory import HostKvMemory
from nodeserve.errors import ConfigError, DeviceError, PeerError
from nodeserve.transfer import cuda_ipc, cuda_vmm
from nodeserve.transfer.base import Fence, Handle, Importer
from nodeserve.transfer.cuda_copier import CudaCopier, Submit
from nodeserve.transfer.cuda_ipc import CudaIpcImporter
from nodeserve.transfer.cuda_vmm import CudaVmmImporter

LEAST_SCRATCH_BYTES: Final = 1 << 20


def platform_memory(pool_bytes: int, settings: Mapping[str, Any]) -> HostKvMemory:
    """Return where a rank's pool of ``pool_bytes`` bytes is to lie on this platform.

    Raises:
        ConfigError: The GPU cannot share memory by the transport that ``settings`` names.
    """
    if not current_platform.is_cuda():
        return HostKvMemory(pool_bytes)
    transport = settings.get(GPU_TRANSPORT, cuda_ipc.TRANSPORT)
    try:
        context = CudaContext(CudaDriver(), torch.cuda.current_device())
        if transport == cuda_vmm.TRANSPORT:
            require_vmm(context)
    except DeviceError as error:
        text = f"KV in GPU memory cannot be handed over by {transport}: {error}"
        raise ConfigError(text) from error
    memory = CudaVmmKvMemory if transport == cuda_vmm.TRANSPORT else CudaKvMemory
    return memory(pool_bytes, context, index_copies.submitter(context))


def _compute_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


class CudaKvMemory(HostKvMemory):
    """The pool in GPU memory as torch allocates it, with one IPC handle."""

    def __init__(
        self,
        pool_bytes: int,
        context: CudaContext,
        on_device: Submit | None = None,
        compute_stream: Callable[[], int] = _compute_stream,
    ) -> None:
        """Wait for the one allocation of ``pool_bytes`` bytes on the device of ``context``.

        Args:
            pool_bytes: How large it will be.
            context: Our GPU's, which is also torch's.
            on_device: How copies within one GPU are asked for; None for one by one.
            compute_stream: Returns the stream that the calling thread computes on.
        """
        super().__init__(pool_bytes)
        self._context = context
        self._on_device = on_device
        self._compute_stream = compute_stream
        self._handoffs = self.copier()

    def copier(self) -> CudaCopier:
        """Return what copies between the pool and host memory, on a stream of its own."""
        return CudaCopier(self._context, self._compute_stream, on_device=self._on_device)

    def fence(self) -> Fence | None:
        """Return a point behind all that vLLM has asked the device for."""
        return self._handoffs.fence()

    def follow(self, fence: Fence | None) -> None:
        """Let the stream of handoffs wait for ``fence``; the calling thread does not."""
        self._handoffs.follow(fence)

    def importers_into(self, address: int, num_bytes: int) -> dict[str, Importer]:
        """Return what copies from peers, who may share their memory in either way."""
        context, copier = self._context, self._handoffs
        ours = (copier, address, num_bytes)
        return {
            cuda_ipc.TRANSPORT: CudaIpcImporter(context, *ours),
            cuda_vmm.TRANSPORT: CudaVmmImporter(
                context.uuid, lambda fd, size: map_fd(context, fd, size), *ours
            ),
        }

    @contextmanager
    def scratch(self, num_bytes: int) -> Generator[tuple[int, int]]:
        """Give memory beside torch's, which may have left little: a full GPU is no slow path."""
        address, num_bytes = self._context.allocate_up_to(num_bytes, LEAST_SCRATCH_BYTES)
        try:
            yield address, num_bytes
        finally:
            self._context.free(address)

    def _allocate(self, as_torch_does: Callable[[], torch.Tensor]) -> torch.Tensor:
        return as_torch_does()

    def _export(self) -> Handle:
        try:
            return cuda_ipc.export_pool(self._context, self.pool_address, self._pool_bytes)
        except PeerError as error:
            raise ConfigError(str(error)) from error


class CudaVmmKvMemory(CudaKvMemory):
    """The pool in GPU memory of our own, by file descriptor: peers read on when we have ended.

    Torch does not know of it: no pluggable allocator has to be compiled for that. It counts
    towards what ``nvidia-smi`` shows, not towards torch's statistics.
    """

    def _allocate(self, as_torch_does: Callable[[], torch.Tensor]) -> torch.Tensor:  # noqa: ARG002
        self._memory = VmmMemory(self._context, self._pool_bytes)
        device = torch.empty(0, device=current_platform.device_type).device
        pool = index_copies.tensor_at(self._memory.address, self._pool_bytes, device)
        return pool.zero_()

    def _export(self) -> Handle:
        return cuda_vmm.export_memory(self._memory, self._context.uuid, self._pool_bytes)
