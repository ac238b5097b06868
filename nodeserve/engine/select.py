"""Which engine a worker runs."""

import importlib
from typing import Final, cast

from nodeserve.engine.base import Engine, EngineFactory, Progress
from nodeserve.wire.spawn import EngineSpec, WorkerSpec

SIMULATED: Final = "nodeserve.engine.simulated.engine:SimulatedEngine"
VLLM: Final = "nodeserve.engine.vllm.engine:VllmEngine"


def engine_path(engine: EngineSpec) -> str:
    """Return the import string ``module:class`` of the engine that ``engine`` asks for."""
    return VLLM if engine.simulate is None else SIMULATED


def create(spec: WorkerSpec, progress: Progress) -> Engine:
    """Make the worker's engine; nothing is loaded before its ``start``.

    The engine's module is imported here and not above: only the processes that run vLLM may
    import it.

    Args:
        spec: What the worker was told at birth; handed to the engine as it is.
        progress: Called from the main thread while the engine starts.
    """
    module, _, name = engine_path(spec.engine).partition(":")
    factory = cast("EngineFactory", getattr(importlib.import_module(module), name))
    return factory(spec, progress)
