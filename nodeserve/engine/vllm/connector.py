"""vLLM's view of nodeserve: one KV connector, made once per scheduler and once per rank.

Every method hands over to one of the two halves. The order in which vLLM calls them is in its
vllm/distributed/kv_transfer/kv_connector/v1/base.py (0.32), an API that it calls experimental.
"""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.platforms import current_platform
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from nodeserve.clock import MonotonicClock
from nodeserve.engine.vllm.connector_messages import LoadReport, PoolHandshake
from nodeserve.engine.vllm.connector_scheduler import ConnectorSettings, SchedulerSide
from nodeserve.engine.vllm.connector_worker import WorkerSide
from nodeserve.engine.vllm.cuda_memory import platform_memory
from nodeserve.engine.vllm.host_tier import require_one_block_size, tier_scheduler
from nodeserve.engine.vllm.host_tier_messages import StepMetadata, StepReport, TierStep
from nodeserve.engine.vllm.host_tier_scheduler import TierScheduler
from nodeserve.engine.vllm.host_tier_worker import TierWorker
from nodeserve.engine.vllm.kv_memory import HostKvMemory, RankFacts
from nodeserve.kv import layout


class NodeserveConnector(KVConnectorBase_V1, SupportsHMA):
    """Brings KV to where it is needed.

    A handed-over prompt is pulled out of the memory of the worker that computed it, under a lease;
    any other one is looked up in the node's host tier, where what is computed is stored.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        """Make the half that ``role`` asks for.

        Raises:
            ConfigError: The model's KV cannot be handed over.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        require_one_block_size(self._kv_transfer_config.kv_connector_extra_config, kv_cache_config)
        if role is KVConnectorRole.SCHEDULER:
            settings = msgspec.convert(
                self._kv_transfer_config.kv_connector_extra_config, ConnectorSettings
            )
            self.scheduler = SchedulerSide(settings, kv_cache_config, MonotonicClock())
            self.tier: TierScheduler | None = None
        else:
            self.tier_worker: TierWorker | None = None
            self.worker = WorkerSide(
                kv_cache_config,
                RankFacts.of(vllm_config, get_tensor_model_parallel_rank()),
                self.kv_memory(kv_cache_config.kv_cache_tensors[0].size),
                clock=MonotonicClock(),
            )

    @classmethod
    def get_required_kvcache_layout(cls, _: VllmConfig) -> str | None:
        """Ask for blocks that are one run over all layers, so that a block is one copy.

        Within a layer its heads lie one after the other, so that ranks' shares are few runs.
        The CPU's attention has a layout of its own.
        """
        return "BLHNC" if current_platform.is_cuda() else None

    # ------------------------------------------------------------- worker side

    def kv_memory(self, pool_bytes: int) -> HostKvMemory:
        """Return where this rank's pool is to lie: as the platform has it."""
        return platform_memory(pool_bytes, self._kv_transfer_config.kv_connector_extra_config)

    def bind_connector_metadata(self, connector_metadata: StepMetadata) -> None:
        """Take what a step is to load, before the step's own work is asked for."""
        super().bind_connector_metadata(connector_metadata)
        self.worker.begin_step(connector_metadata.handoffs.loads)
        if self.tier_worker is not None:
            self.tier_worker.begin_step(connector_metadata.tier)

    def get_mem_pool_context(self) -> AbstractContextManager:
        """Return the context in which vLLM allocates its KV cache."""
        return self.worker.memory

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the allocated KV cache."""
        self.worker.register(kv_caches)
        if self._kv_transfer_config.kv_connector_extra_config.get("tier_address") is not None:
            self.tier_worker = self.worker.tier_worker()

    def get_handshake_metadata(self) -> PoolHandshake | None:
        """Return where this rank's pool lies, for the scheduler side."""
        return self.worker.handshake()

    def start_load_kv(self, *_: Any, **__: Any) -> None:
        """Begin this step's loads; before the forward if one of them is not parked."""
        step: StepMetadata = self._get_connector_metadata()
        self.worker.start(step.handoffs.loads)
        if self.tier_worker is not None:
            self.tier_worker.start(step.tier)

    def get_transfer_results(self, _: set[str]) -> KVConnectorTransferResults:
        """Return which parked loads are over. Nothing is ever sent: peers pull."""
        finished, failed = self.worker.take_finished()
        if self.tier_worker is not None:
            more_finished, more_failed = self.tier_worker.take_finished()
            finished, failed = finished | more_finished, failed | more_failed
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that this step's forward should not have read."""
        return self.worker.take_bad_blocks()

    def build_connector_worker_meta(self) -> StepReport | None:
        """Return counts for the scheduler side."""
        report = StepReport(handoffs=self.worker.take_report() or LoadReport())
        if self.tier_worker is not None:
            report = dataclasses.replace(report, tier=self.tier_worker.take_report())
        return None if report == StepReport() else report

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: a load that a forward needs is complete before it starts."""

    def save_kv_layer(self, layer_name: str, *_: Any, **__: Any) -> None:
        """Do nothing: blocks are read where they lie."""

    def wait_for_save(self) -> None:
        """Do nothing: blocks are read where they lie."""

    def shutdown(self) -> None:
        """Let go of threads and memory."""
        if hasattr(self, "scheduler"):
            self.scheduler.close()
            if self.tier is not None:
                self.tier.close()
        else:
            self.worker.close()
            if self.tier_worker is not None:
                self.tier_worker.close()

    # ---------------------------------------------------------- scheduler side

    def set_xfer_handshake_metadata(self, metadata: dict[int, PoolHandshake]) -> None:
        """Take where all ranks' pools lie."""
        self.scheduler.set_pools(metadata)
        self.tier = tier_scheduler(
            self._kv_transfer_config.kv_connector_extra_config,
            self._vllm_config,
            [layout.from_plain(metadata[rank].pool.geometry) for rank in sorted(metadata)],
            self.scheduler.block_pool,
            MonotonicClock(),
        )

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """Take the pool whose reference counts pin leased blocks."""
        self.scheduler.bind_block_pool(gpu_block_pool)

    def on_new_request(self, request: Request) -> None:
        """Note a new request's handoff, or look up what the tier has of it."""
        self.scheduler.arrive(request)
        if self.tier is not None:
            self.tier.arrive(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded behind the local prefix hit; None to ask again."""
        num_tokens, parked = self.scheduler.loadable_tokens(request, num_computed_tokens)
        if num_tokens or self.tier is None:
            return num_tokens, parked
        num_tokens = self.tier.loadable_tokens(request, num_computed_tokens)
        return num_tokens, bool(num_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Ask for the load, now that its blocks are known."""
        if self.scheduler.allocated(request, blocks, num_external_tokens) or self.tier is None:
            return
        self.tier.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        """Return this step's loads and stores."""
        handoffs = self.scheduler.take_metadata()
        if self.tier is None:
            return StepMetadata(handoffs, TierStep())
        return StepMetadata(handoffs, self.tier.take_step(scheduler_output))

    def has_pending_push_work(self) -> bool:
        """Return whether stores need further steps, even if no request does."""
        return self.tier is not None and self.tier.is_busy

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Count what the workers report."""
        report = connector_output.kv_connector_worker_meta or StepReport()
        failed = self.scheduler.take_output(connector_output, report.handoffs)
        if self.tier is not None:
            self.tier.take_output(connector_output, report.tier)
            for request_id in failed:
                self.tier.look_again(request_id)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Pin a prefill leg's blocks and return its handoff; the request itself is over."""
        if self.tier is not None:
            self.tier.finish(request)
        return False, self.scheduler.finish(request, block_ids)

    def reset_cache(self) -> bool:
        """Return whether nothing is leased or being stored: those blocks are still read."""
        held = 0 if self.tier is None else self.tier.num_held_blocks
        return self.scheduler.stats()["leased"] + held == 0
