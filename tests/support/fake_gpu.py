"""vLLM on the CPU with its KV cache in memory of the fake CUDA driver, which the CPU can reach."""

from typing import Any

import torch
from vllm.config import KVTransferConfig

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.engine.vllm import args, index_copies
from nodeserve.engine.vllm.connector import NodeserveConnector
from nodeserve.engine.vllm.cuda_memory import CudaKvMemory, CudaVmmKvMemory
from nodeserve.engine.vllm.environment import Platform
from nodeserve.wire.spawn import WorkerSpec

LIBRARY = "fake_cuda_library"
OFFSET = 4096
"""Torch's pools begin within an allocation, too."""


class FakeIpcMemory(CudaKvMemory):
    """Allocates by the driver, as torch does on a GPU."""

    def _allocate(self, as_torch_does: Any) -> torch.Tensor:
        address = self._context.allocate(OFFSET + self._pool_bytes) + OFFSET
        return index_copies.tensor_at(address, self._pool_bytes, torch.device("cpu")).zero_()


class FakeGpuConnector(NodeserveConnector):
    """Ours, on the fake driver that the settings name."""

    def kv_memory(self, pool_bytes: int) -> CudaKvMemory:
        settings = self._kv_transfer_config.kv_connector_extra_config
        context = CudaContext(CudaDriver(settings[LIBRARY]), 0)
        compute = context.stream()
        kinds = {"cuda_ipc": FakeIpcMemory, "cuda_vmm": CudaVmmKvMemory}
        return kinds[settings[args.GPU_TRANSPORT]](pool_bytes, context, None, lambda: compute)


def transfer_config(library: str, spec: WorkerSpec, platform: Platform) -> KVTransferConfig:
    config = args.transfer_config(spec, platform)
    config.kv_connector = "FakeGpuConnector"
    config.kv_connector_module_path = "tests.support.fake_gpu"
    config.kv_connector_extra_config[LIBRARY] = library
    return config
