"""Checks of engine.vllm.rank_memory and engine.vllm.executor: run in a child that has vLLM."""

import gc
import mmap
import os
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

from nodeserve.engine.vllm.executor import executor_class
from nodeserve.engine.vllm.rank_memory import forget_names

SHM = Path("/dev/shm")


def memory_of_one_engine(pipe: Connection) -> None:
    """Two files of shared memory, mapped: one of this engine, one of another."""
    idents = [f"nodeserve-test-{uuid4().hex}" for _ in range(2)]
    paths = [SHM / f"{ident}-tp:0-[0-1]-cpushm_0" for ident in idents]
    maps = []
    for path in paths:
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            maps.append(mmap.mmap(file.fileno(), 4096))
    os.environ.pop("VLLM_DIST_IDENT", None)
    try:
        forget_names(None)
        assert [path.exists() for path in paths] == [True, True]
        os.environ["VLLM_DIST_IDENT"] = idents[0]
        forget_names(None)
        forget_names(None)
        assert [path.exists() for path in paths] == [False, True]
        maps[0][:5] = b"still"
        assert maps[0][:5] == b"still"
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    pipe.send("as it should be")


def queues_and_semaphores(pipe: Connection) -> None:
    """They work on without their names, and their end complains of nothing."""
    complaints = []
    sys.unraisablehook = complaints.append
    queue = MessageQueue(1, 1, max_chunk_bytes=4096, max_chunks=2)
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.wait_until_ready()
    reader.wait_until_ready()
    lock: Any = get_context("spawn").Lock()
    handle = queue.export_handle()
    memory = SHM / handle.buffer_handle[-1]
    sockets = [handle.local_subscribe_addr, handle.local_notify_addr]
    semaphore = SHM / f"sem.{lock._semlock.name.removeprefix('/')}"
    paths = [memory, semaphore, *(Path(each.removeprefix("ipc://")) for each in sockets)]
    assert all(path.exists() for path in paths)
    forget_names(None)
    assert not any(path.exists() for path in paths)
    forget_names(None)
    for payload in ("short", "long" * 4096):  # by memory, and by a socket
        queue.enqueue(payload)
        assert reader.dequeue(timeout=10) == payload
    with lock:
        pass
    del queue, reader, lock
    gc.collect()
    assert complaints == []
    pipe.send("as it should be")


def ranks_of_which_one_died(pipe: Connection) -> None:
    """The others are not given time to end by themselves, of which they would not make use."""
    dead, waiting = _ranks(0, 60)
    dead.join()
    _end([dead, waiting])
    assert waiting.exitcode == -signal.SIGKILL
    pipe.send("as it should be")


def ranks_that_end(pipe: Connection) -> None:
    ending = _ranks(0.5, 0.5)
    _end(ending)
    assert [rank.exitcode for rank in ending] == [0, 0]
    pipe.send("as it should be")


def _ranks(*lifetimes_s: float) -> list:
    ranks = [get_context("fork").Process(target=time.sleep, args=(each,)) for each in lifetimes_s]
    for rank in ranks:
        rank.start()
    return ranks


def _end(ranks: list) -> None:
    config = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend="mp"))
    executor_class(config, Path("/nowhere"))._ensure_worker_termination(ranks)
