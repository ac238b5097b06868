"""vLLM's executors, which leave nothing behind outside the runtime directory."""

import os
from multiprocessing.process import BaseProcess
from pathlib import Path

from vllm.config import VllmConfig
from vllm.v1.executor import Executor, multiproc_executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from nodeserve.engine.vllm.rank_main import ENGINE_PID, rank_main
from nodeserve.engine.vllm.rank_memory import forget_names

_FILE = "file://"


def executor_class(config: VllmConfig, store: Path) -> type[Executor]:
    """Return the executor that ``config`` asks for, with its process group's file at ``store``.

    vLLM puts that file into the temporary directory, where it stays for good when the engine is
    killed, as does what several ranks share. Source: vllm/utils/network_utils.py:154 (0.32).
    """
    chosen = Executor.get_class(config)
    if chosen is UniProcExecutor:
        return _one_rank(store)
    return _several_ranks(store) if chosen is MultiprocExecutor else chosen


def _one_rank(store: Path) -> type[Executor]:
    class NodeExecutor(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            method, rank, local_rank = super()._distributed_args()
            if method.startswith(_FILE):
                method = f"{_FILE}{store}"
            return method, rank, local_rank

    return NodeExecutor


def _several_ranks(store: Path) -> type[Executor]:
    class NodeExecutor(MultiprocExecutor):
        def _init_executor(self) -> None:
            # vLLM asks for it once, in here, and there is no other way to tell it.
            multiproc_executor.get_file_store_init_method = lambda: f"{_FILE}{store}"
            os.environ[ENGINE_PID] = str(os.getpid())
            WorkerProc.worker_main = staticmethod(rank_main)
            super()._init_executor()
            # Before vLLM freezes the heap, in which the queues are looked for.
            self.collective_rpc(forget_names)
            forget_names(None)

        @staticmethod
        def _ensure_worker_termination(worker_procs: list[BaseProcess]) -> None:
            if not all(rank.is_alive() for rank in worker_procs):
                # The others wait for it in a collective and end by nothing but this, which vLLM
                # comes to after ten seconds.
                for rank in worker_procs:
                    rank.kill()
            MultiprocExecutor._ensure_worker_termination(worker_procs)  # noqa: SLF001

    return NodeExecutor
