"""What a test's engine process runs: a worker without its supervisor."""

import dataclasses
import functools
import importlib
import json
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from nodeserve.engine.vllm import args
from nodeserve.engine.vllm.connector_messages import LoadReport
from nodeserve.engine.vllm.engine import VllmEngine
from nodeserve.engine.vllm.environment import Platform
from nodeserve.engine.vllm.host_tier_messages import StepReport
from nodeserve.engine.vllm.host_tier_orders import TierReport
from nodeserve.errors import ConfigError, NodeserveError
from nodeserve.wire import control
from nodeserve.wire.spawn import PythonGatewaySpec, WorkerSpec
from tests.support import tiny_model
from tests.support.step_telling import accounted


def make_model(folder: str, changes: dict[str, Any]) -> None:
    tiny_model.make(folder, **changes)


def configure(specs: list[tuple[WorkerSpec, Platform]], pipe: Connection) -> None:
    """Answer with what vLLM's configuration of each spec comes to: facts, or a refusal."""
    pipe.send([_configured(spec, platform) for spec, platform in specs])


def parse_front_end(specs: list[PythonGatewaySpec], keys: str, pipe: Connection) -> None:
    """Answer with what the API server makes of each spec's arguments: facts, or a refusal."""
    # Only a gateway loads the API server, so the forkserver has not.
    api_server = importlib.import_module("nodeserve.engine.vllm.api_server")
    os.environ["VLLM_API_KEY"] = keys
    answers: list[object] = []
    for spec in specs:
        try:
            parsed = api_server.parse(spec)
        except ConfigError as error:
            answers.append(str(error))
        else:
            answers.append({"model": parsed.model, "keys": parsed.api_key, "seed": parsed.seed})
    pipe.send(answers)


def build_front_end_twice(pipe: Connection) -> None:
    """Answer with the threads that building it starts, and what a second one still imports."""
    threads = threading.active_count()
    warm = importlib.import_module("nodeserve.engine.vllm.api_server_warm")
    started, before = threading.active_count() - threads, set(sys.modules)
    warm.build()
    pipe.send((started, sorted(sys.modules.keys() - before)))


def sum_reports(reports: list[tuple[int, float, int]], pipe: Connection) -> None:
    """Answer with what the scheduler is told when each rank reports one of ``reports``."""
    ranks = [pickle.loads(pickle.dumps(LoadReport(*report))) for report in reports]
    pipe.send(dataclasses.astuple(functools.reduce(LoadReport.aggregate, ranks)))


def sum_step_reports(pipe: Connection) -> None:
    """Answer with what the scheduler is told of two ranks' handoffs and tier."""
    first = StepReport(LoadReport(num_bytes=5), TierReport(ended={1: 1}, failed={1}))
    second = StepReport(LoadReport(num_bytes=7), TierReport(ended={1: 1}, load_bytes=7))
    total = first.aggregate(pickle.loads(pickle.dumps(second)))
    pipe.send(
        {
            "ended": total.tier.ended,
            "failed": total.tier.failed,
            "load_bytes": total.tier.load_bytes,
            "handoff_bytes": total.handoffs.num_bytes,
        }
    )


def _configured(spec: WorkerSpec, platform: Platform) -> object:
    try:
        transfer = args.transfer_config(spec, platform)
        config = args.vllm_config(spec, platform, transfer)
    except NodeserveError as error:
        return type(error).__name__, str(error)
    kept = config.kv_transfer_config
    return {
        "connector": kept and kept.kv_connector,
        "role": kept and kept.kv_role,
        "policy": kept and kept.kv_load_failure_policy,
        "extra": kept and kept.kv_connector_extra_config,
        "events": config.kv_events_config.endpoint,
        "executor": config.parallel_config.distributed_executor_backend,
        "grammar": config.structured_outputs_config.backend,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "hashes": config.cache_config.prefix_caching_hash_algo,
        "block_size": config.cache_config.block_size,
        "eager": config.model_config.enforce_eager,
    }


def run_engine(spec_bytes: bytes, pipe: Connection) -> None:
    """Start the spec's engine, answer with its WorkerReady or an error, and run it to SIGTERM."""
    spec = msgspec.msgpack.decode(spec_bytes, type=WorkerSpec)
    _run(VllmEngine(spec, lambda _: None), spec, pipe)


def run_engine_without_connector(spec_bytes: bytes, pipe: Connection) -> None:
    """Do the same with an engine that hands nothing over, as on GPUs."""
    spec = msgspec.msgpack.decode(spec_bytes, type=WorkerSpec)
    _run(VllmEngine(spec, lambda _: None, lambda *_: None), spec, pipe)


def run_engine_on_fake_gpu(library: str, spec_bytes: bytes, pipe: Connection) -> None:
    """Do the same with the KV cache in memory of the fake CUDA driver at ``library``."""
    fake_gpu = importlib.import_module("tests.support.fake_gpu")
    spec = msgspec.msgpack.decode(spec_bytes, type=WorkerSpec)
    transfer = functools.partial(fake_gpu.transfer_config, library)
    _run(VllmEngine(spec, lambda _: None, transfer), spec, pipe)


def _facts(engine: VllmEngine) -> dict[str, Any]:
    """Return what runs the model, for tests that rest on it."""
    core = engine._core
    (runner,) = core.model_executor.collective_rpc(_runner)[:1]
    return {"runner": runner, "async": bool(core.vllm_config.scheduler_config.async_scheduling)}


def _runner(worker: Any) -> str:
    return type(worker.model_runner).__module__


def _run(engine: VllmEngine, spec: WorkerSpec, pipe: Connection) -> None:
    log = os.open(Path(spec.runtime_dir) / f"{spec.name}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    try:
        ready = engine.start()
        facts = Path(spec.runtime_dir) / f"{spec.name}.json"
        facts.write_text(json.dumps(_facts(engine)))
        pipe.send_bytes(control.encode(ready))
    except NodeserveError as error:
        pipe.send_bytes(f"{type(error).__name__}: {error}".encode())
        sys.exit(error.exit_code)
    with accounted(engine, spec):
        engine.run()
