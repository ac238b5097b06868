"""The orders of vLLM's calls that KV in GPU memory rests on, read in the installed source.

Its second model runner (V2), the one that CUDA uses, cannot be imported without Triton and a GPU.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

V2_CONNECTOR = "v1/worker/gpu/kv_connector.py"
V2_RUNNER = "v1/worker/gpu/model_runner.py"
V1_MIXIN = "v1/worker/kv_connector_model_runner_mixin.py"


def source(path: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / path).read_text())


def function(tree: ast.AST, name: str, within: str | None = None) -> ast.FunctionDef:
    if within is not None:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == within)
    return next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)


def calls(tree: ast.AST) -> Iterator[str]:
    """Yield the names of what is called, in the order of the source."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    for call in sorted(found, key=lambda n: (n.lineno, n.col_offset)):
        if isinstance(call.func, ast.Attribute):
            yield call.func.attr
        elif isinstance(call.func, ast.Name):
            yield call.func.id


def in_order(names: Iterator[str], *wanted: str) -> bool:
    return all(any(name == want for name in names) for want in wanted)


def test_both_runners_have_gpu_worker_enter_our_context_around_the_one_allocation():
    worker = function(source("v1/worker/gpu_worker.py"), "initialize_from_config")
    order = ("ensure_kv_transfer_initialized", "get_mem_pool_context", "initialize_kv_cache")
    assert in_order(calls(worker), *order)
    (given,) = [
        keyword.value
        for call in ast.walk(worker)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "kv_cache_allocation_context"
    ]
    assert ast.unparse(given) == "mem_pool_context"
    allocate = function(source("v1/worker/gpu/attn_utils.py"), "init_kv_cache")
    (within,) = [n for n in ast.walk(allocate) if isinstance(n, ast.With)]
    assert ast.unparse(within.items[0].context_expr) == "allocation_context"
    assert "allocate_kv_cache" in calls(within)


def test_the_allocation_is_one_torch_zeros_of_int8():
    allocate = function(source("v1/worker/utils.py"), "allocate_kv_cache")
    zeros = [n for n in ast.walk(allocate) if isinstance(n, ast.Call)]
    made = [ast.unparse(n) for n in zeros if ast.unparse(n.func).startswith("torch.")]
    assert made == ["torch.zeros(buf_size, dtype=torch.int8, device=device)"]


def test_v2_registers_the_views_once_and_not_in_its_profiling_run():
    assert "register_kv_caches" in calls(function(source(V2_CONNECTOR), "__init__"))
    init = function(source(V2_RUNNER), "initialize_kv_cache")
    (branch,) = [
        n for n in ast.walk(init) if isinstance(n, ast.If) and ast.unparse(n.test) == "is_profiling"
    ][-1:]
    assert "get_kv_connector" in calls(ast.Module(branch.orelse, []))
    assert "get_kv_connector" not in calls(ast.Module(branch.body, []))


def test_v2_binds_a_steps_metadata_before_the_forward_and_behind_the_zeroing():
    before = function(source(V2_CONNECTOR), "pre_forward", within="ActiveKVConnector")
    assert in_order(calls(before), "bind_connector_metadata", "_start_load_kv")
    (sync,) = [
        n for n in before.body if isinstance(n, ast.If) and "sync_kv_loads" in ast.unparse(n.test)
    ]
    assert "_start_load_kv" in calls(sync)
    step = function(source(V2_RUNNER), "execute_model")
    assert in_order(calls(step), "update_requests", "pre_forward", "run_fullgraph")
    assert in_order(calls(step), "pre_forward", "model", "finish_forward")
    assert "zero_block_ids" in calls(function(source(V2_RUNNER), "update_requests"))


V2_AFTER = (
    *("_start_load_kv", "wait_for_save", "get_transfer_results"),
    *("get_block_ids_with_load_errors", "get_kv_connector_stats"),
    *("get_kv_connector_kv_cache_events", "build_connector_worker_meta"),
    "clear_connector_metadata",
)


def test_v2_asks_for_results_after_the_forward_in_this_order():
    after = function(source(V2_CONNECTOR), "post_forward", within="ActiveKVConnector")
    assert in_order(calls(after), *V2_AFTER)
    sample = function(source(V2_RUNNER), "sample_tokens")
    assert in_order(calls(sample), "sample", "post_forward")


def test_v2_does_the_same_in_a_step_without_tokens():
    alone = function(source(V2_CONNECTOR), "no_forward", within="ActiveKVConnector")
    assert in_order(calls(alone), "pre_forward", "finish_forward", "post_forward")
    step = function(source(V2_RUNNER), "execute_model")
    assert "no_forward" in calls(step)


def test_v1_does_the_same_in_one_place():
    mixin = function(source(V1_MIXIN), "_get_kv_connector_output")
    v1 = ["bind_connector_metadata", *(V2_AFTER[1:3]), "get_block_ids_with_load_errors"]
    assert in_order(calls(mixin), *v1, "build_connector_worker_meta", "clear_connector_metadata")


def test_what_is_being_loaded_is_not_zeroed_in_the_step_that_allocates_it():
    """Or the fence, recorded before that step's own work is asked for, would be too early."""
    scheduler = (Path(source_path()) / "v1/core/sched/scheduler.py").read_text()
    assert "load_kv_async" in scheduler
    assert "new_block_ids_to_zero" in scheduler
    worker = (Path(source_path()) / "v1/kv_offload/cpu/gpu_worker.py").read_text()
    text = " ".join(worker.replace("#", " ").split())
    assert "the scheduler leaves a block unzeroed only in the step that allocates it" in text


def source_path() -> str:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent)
