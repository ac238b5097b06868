"""What the ranks of one engine share by name, which must not outlive them.

vLLM removes most of it when it ends; what is killed removes nothing. Once everybody has opened
what he needs, the names are of no use any more: memory without a name goes with its last process.

- A file of 4 MiB in /dev/shm per rank on CPUs, which vLLM never removes: ``_CPUSHMDistributed``.
- Message queues: memory of up to 250 MB, and two sockets in the temporary directory each.
- Semaphores of multiprocessing, such as that of tqdm's default lock.

Source: cpu_communicator.py and shm_broadcast.py in vllm/distributed/device_communicators (0.32).
"""

import gc
import os
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any, Final

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

_SHARED: Final = "/dev/shm/"  # noqa: S108  (where shm_open has them)
_IPC: Final = "ipc://"


def forget_names(_worker: Any) -> None:
    """Remove the names of what this process shares with the engine's others.

    For every process of the engine, once all of them have loaded the model and before vLLM
    freezes the heap, which hides its queues.

    Args:
        _worker: vLLM's, as ``collective_rpc`` passes it.
    """
    _forget_rank_memory()
    for living in gc.get_objects():
        if type(living) is MessageQueue and living._is_writer:  # noqa: SLF001
            _forget_queue(living)
    for unlink in _semaphores():
        unlink()


def _forget_rank_memory() -> None:
    ident = os.environ.get("VLLM_DIST_IDENT")
    if not ident:  # no engine on CPUs
        return
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith(f"{_SHARED}{ident}-"):
            Path(path[0].removesuffix(" (deleted)")).unlink(missing_ok=True)


def _forget_queue(queue: MessageQueue) -> None:
    if queue.buffer is not None and queue.buffer.is_creator:
        queue.buffer.shared_memory.unlink()
        queue.buffer.is_creator = False  # who unlinks when it is collected
    for address in (queue.handle.local_subscribe_addr, queue.handle.local_notify_addr):
        if address is not None:
            Path(address.removeprefix(_IPC)).unlink(missing_ok=True)


def _semaphores() -> list[Callable[[], object]]:
    """Return what would remove the semaphores' names at the end, each to be called once."""
    finalizers = list(util._finalizer_registry.values())  # noqa: SLF001
    return [each for each in finalizers if each._callback is SemLock._cleanup]  # noqa: SLF001
