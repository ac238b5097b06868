"""vLLM as a worker's engine."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from vllm.config import KVTransferConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineShutdownState
from vllm.v1.engine.utils import SignalCallback

from nodeserve.clock import MonotonicClock
from nodeserve.config.paths import new_engine_store
from nodeserve.config.release import check_vllm, pinned_vllm_version
from nodeserve.engine.base import Progress
from nodeserve.engine.profiles import find_work
from nodeserve.engine.step_log import StepRecorder
from nodeserve.engine.vllm import args, environment
from nodeserve.engine.vllm.core import NodeEngineCore, wire_fields
from nodeserve.engine.vllm.environment import Platform
from nodeserve.engine.vllm.step_watch import StepWatch
from nodeserve.errors import CapacityError, ConfigError, InvariantError, PeerError
from nodeserve.wire.accounting import WorkShape
from nodeserve.wire.control import WorkerReady
from nodeserve.wire.kinds import HANDOFF, PROBE, RESUME, TIER_PROBE
from nodeserve.wire.spawn import WorkerSpec

_logger = logging.getLogger(__name__)


class VllmEngine:
    """One vLLM engine core, in this process; with tensor parallelism, its ranks are children.

    Attributes:
        recorder: What it computes, from ``start`` on; None where nobody accounts for it.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        progress: Progress,
        transfer: Callable[[WorkerSpec, Platform], KVTransferConfig | None] = args.transfer_config,
    ) -> None:
        """Remember what to run.

        Args:
            spec: What the worker was told at birth.
            progress: Called while ``start`` works.
            transfer: Returns how the engine hands KV over, None for not at all.
        """
        self._spec = spec
        self._progress = progress
        self._transfer = transfer
        self._core: NodeEngineCore | None = None
        self.recorder: StepRecorder | None = None
        self._stopping = threading.Event()
        self._stop_core = SignalCallback(self._wake_to_stop)

    @property
    def steps(self) -> int:
        """Engine steps so far."""
        return 0 if self._core is None else self._core.steps

    @property
    def num_requests(self) -> int:
        """Requests the engine still has work for."""
        return 0 if self._core is None else self._core.num_requests

    def start(self) -> WorkerReady:
        """Load the model and connect to the dispatcher.

        Raises:
            ConfigError: vLLM is another release than the pinned one, an engine argument does not
                work, or the KV cannot be handed over though the role needs it.
            CapacityError: The device has no room for the model or its KV cache at present.
            PeerError: vLLM failed for another reason, such as weights that do not fit the model.
        """
        spec = self._spec
        platform, release = environment.find_vllm()
        check_vllm(release, pinned_vllm_version())
        transfer = self._transfer(spec, platform)
        os.environ.update(
            environment.platform_environment(platform) | environment.worker_environment(spec)
        )
        if platform is Platform.CPU:
            # The forkserver loaded OpenMP with one thread; vLLM refuses later changes.
            torch.set_num_threads(environment.threads_per_rank(spec))
        self._progress("reading the model's configuration")
        config = args.vllm_config(spec, platform, transfer)
        self._progress("loading the model")
        core = self._core = self._load(config)
        if spec.ledger_address is not None:
            clock = MonotonicClock()
            self.recorder = StepRecorder(_work(spec, platform), now_s=clock.now_s())
            StepWatch(self.recorder, clock).install(core.scheduler)
        _logger.info("engine_ready worker=%s blocks=%d", spec.name, _num_blocks(config))
        return WorkerReady(
            name=spec.name,
            generation=spec.generation,
            fields=wire_fields(release),
            ready=core.ready_payload(),
            block_size=config.cache_config.block_size,
            num_gpu_blocks=_num_blocks(config),
            kv_block_bytes=core.kv_block_bytes,
            max_model_len=config.model_config.max_model_len,
            kv_events_endpoint=(
                None if config.kv_events_config is None else config.kv_events_config.endpoint
            ),
            features=(
                *((HANDOFF, PROBE) * (transfer is not None)),
                *((TIER_PROBE,) * (core.tier is not None)),
                *((RESUME,) * core.can_resume),
            ),
        )

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            PeerError: The engine died; the dispatcher has been told.
        """
        core = self._core
        if core is None:
            raise InvariantError(f"worker {self._spec.name}: run before start")
        if self._stopping.is_set():
            core.shutdown_state = EngineShutdownState.REQUESTED
        try:
            core.run_busy_loop()
        except SystemExit:
            _logger.info("engine_stopped worker=%s steps=%d", self._spec.name, core.steps)
        except Exception as error:
            core._send_engine_dead()  # noqa: SLF001 - as vLLM's own run_engine_core does
            text = f"worker {self._spec.name}: its engine died: {error}; see its log"
            raise PeerError(text) from error
        finally:
            core.shutdown()

    def stop(self) -> None:
        """Make ``run`` abort what runs and return. Any thread; also from a signal handler."""
        self._stopping.set()
        # The engine may sleep in its queue, whose lock the interrupted thread may hold:
        # a thread of its own wakes it.
        self._stop_core.trigger()

    def _wake_to_stop(self) -> None:
        if (core := self._core) is not None:
            core.shutdown_state = EngineShutdownState.REQUESTED
            core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    def _load(self, config: VllmConfig) -> NodeEngineCore:
        spec = self._spec
        try:
            return NodeEngineCore(
                config,
                generation=spec.generation,
                inputs=spec.input_address,
                outputs=spec.output_address,
                store=new_engine_store(Path(spec.runtime_dir), spec.generation),
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            text = f"worker {spec.name}: no room to load: {error}; free the device or try later"
            raise CapacityError(text) from error
        except ValueError as error:
            text = f"worker {spec.name}: vLLM cannot load with this configuration: {error}"
            raise ConfigError(text) from error
        except SafetensorError as error:
            text = f"worker {spec.name}: the weights in {spec.engine.model} are broken: {error}"
            raise ConfigError(f"{text}; fetch them again") from error
        except (RuntimeError, OSError) as error:
            text = f"worker {spec.name}: vLLM cannot load {spec.engine.model}: {error}; see its log"
            raise PeerError(text) from error


def _work(spec: WorkerSpec, platform: Platform) -> WorkShape:
    gpu = current_platform.get_device_name(0) if platform is Platform.CUDA else ""
    return find_work(spec.engine, gpu)


def _num_blocks(config: VllmConfig) -> int:
    return config.cache_config.num_gpu_blocks or 0
