"""What the forkserver imports once, so that a worker starts in 2 s instead of 15.

Only names: the supervisor reads this and must not import vLLM itself.
"""

from nodeserve.engine.vllm.environment import Platform, find_vllm


def modules() -> tuple[str, ...]:
    """Return the modules to import for the installed vLLM, in order.

    None of them starts a thread or touches CUDA.

    Raises:
        ConfigError: vLLM is not installed.
    """
    return platform_modules(find_vllm()[0])


def platform_modules(platform: Platform) -> tuple[str, ...]:
    """Return the modules to import on ``platform``, in order."""
    device = {
        Platform.CPU: "vllm.v1.worker.cpu_worker",
        Platform.CUDA: "vllm.v1.worker.gpu_worker",
    }
    return (
        "nodeserve.worker.main",
        "nodeserve.engine.vllm.engine",
        "nodeserve.engine.vllm.connector",
        "vllm.v1.executor.uniproc_executor",
        "vllm.model_executor.models.llama",
        device[platform],
    )
