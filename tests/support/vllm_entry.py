"""Entry points of engine processes, light enough to be named by a test."""

import importlib
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from nodeserve.engine.vllm import preload
from nodeserve.engine.vllm.environment import Platform
from nodeserve.wire.spawn import PythonGatewaySpec, WorkerSpec


def ask(context: Any, entry: Callable[..., None], *args: Any) -> Any:
    """Return what an entry point answers, run by a child of the forkserver."""
    ours, theirs = context.Pipe()
    process = context.Process(target=entry, args=(*args, theirs))
    process.start()
    theirs.close()
    assert ours.poll(60)
    answer = ours.recv()
    process.join()
    return answer


def run_engine(spec_bytes: bytes, pipe: Connection) -> None:
    _child().run_engine(spec_bytes, pipe)


def missing_modules(pipe: Connection) -> None:
    """Answer with what should be preloaded and is not."""
    pipe.send([name for name in preload.modules() if name not in sys.modules])


def run_engine_without_connector(spec_bytes: bytes, pipe: Connection) -> None:
    _child().run_engine_without_connector(spec_bytes, pipe)


def run_engine_on_fake_gpu(library: str, spec_bytes: bytes, pipe: Connection) -> None:
    _child().run_engine_on_fake_gpu(library, spec_bytes, pipe)


def configure(specs: list[tuple[WorkerSpec, Platform]], pipe: Connection) -> None:
    _child().configure(specs, pipe)


def parse_front_end(specs: list[PythonGatewaySpec], keys: str, pipe: Connection) -> None:
    _child().parse_front_end(specs, keys, pipe)


def build_front_end_twice(pipe: Connection) -> None:
    _child().build_front_end_twice(pipe)


def sum_reports(reports: list[tuple[int, float, int]], pipe: Connection) -> None:
    _child().sum_reports(reports, pipe)


def make_model(folder: str, **changes: Any) -> None:
    _child().make_model(folder, changes)


def check_resume(check: str, pipe: Connection) -> None:
    """Answer with what a function of ``vllm_resume`` finds."""
    getattr(importlib.import_module("tests.support.vllm_resume"), check)(pipe)


def check_kv_groups(check: str, pipe: Connection) -> None:
    """Answer with what a function of ``vllm_kv_groups`` finds."""
    getattr(importlib.import_module("tests.support.vllm_kv_groups"), check)(pipe)


def check_ranks(check: str, pipe: Connection) -> None:
    """Run one of the checks of ``vllm_ranks``."""
    getattr(importlib.import_module("tests.support.vllm_ranks"), check)(pipe)


def check_index_copies(check: str, pipe: Connection) -> None:
    """Run one of the checks of ``index_copy_checks``."""
    getattr(importlib.import_module("tests.support.index_copy_checks"), check)(pipe)


def _child() -> Any:
    # Imports vLLM: only in the forkserver's children, never in the test's own process.
    return importlib.import_module("tests.support.vllm_child")


def sum_step_reports(pipe: Connection) -> None:
    _child().sum_step_reports(pipe)
