"""Grammars compile beside the engine's loop and never before it.

A grammar of some kilobytes takes a core for seconds, and xgrammar starts eight threads for it.
On the engine's own cores they would share its time equally, and every request would wait.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

NICE: Final = 19
"""Their priority; the threads that they start have it too. Source: setpriority(2), NOTES."""

MAX_THREADS: Final = 4
"""Grammars that compile at once: with vLLM's own half a thread per core, one hostile grammar on
a small machine would hold up all others."""


def background_executor() -> ThreadPoolExecutor:
    """Return an executor whose threads run when the engine leaves a core free."""
    return ThreadPoolExecutor(MAX_THREADS, "grammar", initializer=_step_back)


def _step_back() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
