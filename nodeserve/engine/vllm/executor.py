"""vLLM's executors, which leave nothing behind outside the runtime directory."""

from pathlib import Path

from vllm.config import VllmConfig
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

_FILE = "file://"


def executor_class(config: VllmConfig, store: Path) -> type[Executor]:
    """Return the executor that ``config`` asks for, with its process group's file at ``store``.

    vLLM puts that file of an engine with one rank into the temporary directory, where it stays
    for good when the engine is killed. Source: vllm/utils/network_utils.py:154 (0.32). Several
    ranks meet by TCP.
    """
    chosen = Executor.get_class(config)
    if chosen is not UniProcExecutor:
        return chosen

    class NodeExecutor(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, local_rank = super()._distributed_args()
            if method.startswith(_FILE):
                method = f"{_FILE}{store}"
            return method, rank, local_rank

    return NodeExecutor
