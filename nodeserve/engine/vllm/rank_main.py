"""Where a rank of an engine with several begins."""

import os
from typing import Any, Final

from vllm.v1.executor.multiproc_executor import WorkerProc

from nodeserve.device.parent_death import die_with_parent

ENGINE_PID: Final = "NODESERVE_ENGINE_PID"
"""The variable by which a rank knows whose it is."""


def rank_main(**what: Any) -> None:
    """Do as vLLM's ``WorkerProc.worker_main``, and end with the engine whatever it waits for.

    vLLM's rank notices the end of its engine by a pipe, and then still waits for the other ranks,
    for ever and with all of a core, if it was in the middle of a collective.
    """
    die_with_parent()
    if os.environ.get(ENGINE_PID) == str(os.getppid()):
        WorkerProc.worker_main(**what)
