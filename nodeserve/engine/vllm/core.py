"""vLLM's engine core, started without vLLM's handshake and with two utilities of ours."""

import queue
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.request import Request

from nodeserve.engine.vllm import kv_probe, resume, resume_runner
from nodeserve.engine.vllm.connector import NodeserveConnector
from nodeserve.engine.vllm.connector_scheduler import SchedulerSide
from nodeserve.engine.vllm.executor import executor_class
from nodeserve.engine.vllm.grammar_threads import background_executor
from nodeserve.engine.vllm.host_tier_scheduler import TierScheduler
from nodeserve.errors import InvariantError, PeerError
from nodeserve.wire.control import WireFields

NO_HANDOFFS: Final = {
    "leased": 0,
    "loads": 0,
    "load_failures": 0,
    "load_bytes": 0,
    "load_ms": 0.0,
    "expired": 0,
}
"""What an engine without the KV connector has leased and loaded."""

LOOK_UP_S: Final = 0.5
"""How often an engine with nothing to do but leases looks whether their time is up."""


class NodeEngineCore(EngineCoreProc):
    """An engine core that connects to given addresses and counts its steps.

    Every method can be called over the wire by its name: the engine's socket lies in a
    directory that only the node's user can enter.
    """

    def __init__(
        self, config: VllmConfig, *, generation: int, inputs: str, outputs: str, store: Path
    ) -> None:
        """Load the model, allocate the KV cache, and connect to the dispatcher.

        Args:
            config: vLLM's.
            generation: This incarnation's number, its identity on the wire.
            inputs: Address of the dispatcher's ROUTER.
            outputs: Address of the dispatcher's PULL.
            store: A file for the process group; whoever ends us removes it.
        """
        self.steps = 0
        self._node_addresses = EngineZmqAddresses(inputs=[inputs], outputs=[outputs])
        super().__init__(
            config,
            local_client=True,
            handshake_address="",
            executor_class=executor_class(config, store),
            log_stats=True,
            engine_index=generation,
        )
        if hasattr(self.structured_output_manager, "executor"):  # not without a tokenizer
            self.structured_output_manager.executor.shutdown(wait=False)
            self.structured_output_manager.executor = background_executor()
        self.can_resume: Final = all(self.model_executor.collective_rpc(resume_runner.install))

    @contextmanager
    def _perform_handshakes(self, *_: Any) -> Generator[EngineZmqAddresses, None, None]:
        yield self._node_addresses

    def _process_input_queue(self) -> None:
        """Wait for work, as vLLM does; without work it would wait for ever, and leases too."""
        while self._has_leases() and not self.has_work() and self.is_running():
            try:
                message = self.input_queue.get(timeout=LOOK_UP_S)
            except queue.Empty:
                self.handoffs.expire()
                if not self._has_leases():
                    self._say_what_is_free()
            else:
                self._handle_client_request(*message)
        super()._process_input_queue()

    def _process_engine_step(self) -> bool:
        executed = super()._process_engine_step()
        self.steps += 1
        return executed

    def preprocess_add_request(self, request: EngineCoreRequest) -> tuple[Request, int]:
        """Make a request of an ADD; one that is resumed has its output tokens then.

        Runs in the thread that receives; what it raises fails the one request.

        Raises:
            PeerError: The request is to be resumed and cannot be.
        """
        tokens = resume.resumed_tokens(request.sampling_params)
        if not tokens:
            return super().preprocess_add_request(request)
        model = self.vllm_config.model_config
        resume.require_tokens(request.request_id, tokens, model.get_vocab_size())
        if not self.can_resume:
            text = f"request {request.request_id}: this engine cannot resume; send it elsewhere"
            raise PeerError(text)
        request.sampling_params.prompt_logprobs = None  # they came with the first token
        made, wave = super().preprocess_add_request(request)
        resume.restore(made, tokens, model.max_model_len)
        resume.advance_grammar(self.structured_output_manager, made, request)
        return made, wave

    def add_request(self, request: Request, request_wave: int = 0) -> None:
        """Schedule a request, or end it at once if its restored tokens complete it."""
        if request.is_finished():
            self.output_queue.put_nowait((request.client_index, resume.finished_outputs(request)))
        else:
            super().add_request(request, request_wave)

    @property
    def handoffs(self) -> SchedulerSide | None:
        """The scheduler's half of the KV connector: leases and loads; None without one."""
        return None if (connector := self._connector) is None else connector.scheduler

    @property
    def tier(self) -> TierScheduler | None:
        """The scheduler's half of the host tier; None where the engine has none."""
        return None if (connector := self._connector) is None else connector.tier

    @property
    def _connector(self) -> NodeserveConnector | None:
        connector = self.scheduler.get_kv_connector()
        if connector is not None and not isinstance(connector, NodeserveConnector):
            text = f"the engine runs with the KV connector {type(connector).__name__}, not ours"
            raise InvariantError(text)
        return connector

    @property
    def num_requests(self) -> int:
        """Requests that have not finished."""
        return self.scheduler.get_num_unfinished_requests()

    @property
    def kv_block_bytes(self) -> int:
        """What one KV block holds over all layers and ranks."""
        cache = self.scheduler.kv_cache_config
        # Every entry names the size of the one allocation that all layers of a rank lie in.
        rank_bytes = max((tensor.size for tensor in cache.kv_cache_tensors), default=0)
        num_ranks = self.vllm_config.parallel_config.tensor_parallel_size
        return rank_bytes // cache.num_blocks * num_ranks

    def ready_payload(self) -> bytes:
        """Return the ready message that this engine has sent to the dispatcher."""
        return msgspec.msgpack.encode(self._make_ready_response())

    # ------------------------------------------------------------ utilities

    def nodeserve_release(self, lease_ids: list) -> None:
        """End leases on this engine's KV blocks; called over the wire."""
        if (handoffs := self.handoffs) is not None:
            handoffs.release(lease_ids)
        if not self.scheduler.has_unfinished_requests():
            self._say_what_is_free()

    def nodeserve_kv_stats(self) -> dict:
        """Return what was leased and loaded; called over the wire."""
        return NO_HANDOFFS if (handoffs := self.handoffs) is None else handoffs.stats()

    def nodeserve_tier_stats(self) -> dict:
        """Return what was asked of the host tier, loaded and stored; called over the wire."""
        return {} if (tier := self.tier) is None else tier.stats()

    def nodeserve_pools(self) -> list:
        """Return where this engine's KV lies, for ``nodeserve_probe``; called over the wire."""
        return [] if (handoffs := self.handoffs) is None else kv_probe.to_plain(handoffs.pools)

    def nodeserve_probe(self, pools: list) -> dict:
        """Measure how fast a peer's KV can be read from here; called over the wire."""
        return kv_probe.probe_ranks(self.model_executor, pools)

    def nodeserve_probe_tier(self) -> dict:
        """Measure how fast blocks come from the host tier; called over the wire."""
        return kv_probe.probe_tier(self.model_executor, self.tier)

    def _has_leases(self) -> bool:
        return (handoffs := self.handoffs) is not None and handoffs.num_leases > 0

    def _say_what_is_free(self) -> None:
        # No step may follow that would say so: whoever watches would see blocks in use.
        stats = self.scheduler.make_stats()
        self.output_queue.put_nowait((0, EngineCoreOutputs(scheduler_stats=stats)))


def wire_fields(vllm_version: str) -> WireFields:
    """Return the names, in wire order, of what this vLLM's engines receive and send."""
    return WireFields(
        request=EngineCoreRequest.__struct_fields__,
        outputs=EngineCoreOutputs.__struct_fields__,
        output=EngineCoreOutput.__struct_fields__,
        vllm_version=vllm_version,
    )
