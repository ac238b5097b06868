"""Copies between two processes: ours, plain memcpy, and NIXL, in turn over the same sizes.

A handoff of a given size is copied twice: as one run, and as pages of 32 KiB in scattered order, as
a prompt's KV lies in an engine's pool. NIXL is used as vLLM's connector uses it: descriptors of all
pages are prepared once, and each transfer names its own.
"""

import ctypes
import itertools
import json
import mmap
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.shared_memory import SharedMemory, SharedMemoryImporter

KIB: Final = 1 << 10
SIZES: Final = (64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, 16384 * KIB, 65536 * KIB)
PAGE: Final = 32 * KIB
POOL: Final = 128 << 20
ROUNDS: Final = 15
PROGRAM: Final = Path(__file__).with_name("bench_kv_nixl.py")


class Shape(NamedTuple):
    """One handoff: how many bytes, and in pieces of how many."""

    num_bytes: int
    piece_bytes: int

    @property
    def name(self) -> str:
        """What it is, for people."""
        size = f"{self.num_bytes // KIB} KiB"
        return f"{size} in one run" if self.is_one else f"{size} in pages of {PAGE // KIB} KiB"

    @property
    def is_one(self) -> bool:
        """Whether it is one run."""
        return self.num_bytes == self.piece_bytes


SHAPES: Final = tuple(
    Shape(size, piece) for size in SIZES for piece in dict.fromkeys((size, min(size, PAGE)))
)


def pages(shape: Shape) -> tuple[list[int], list[int]]:
    """Return where a handoff's pieces lie on both sides, in pieces; the same in each run."""
    rng = random.Random(shape.num_bytes)
    num, places = shape.num_bytes // shape.piece_bytes, POOL // shape.piece_bytes
    return rng.sample(range(places), num), rng.sample(range(places), num)


class Row(NamedTuple):
    """Median seconds of one shape, by who copied."""

    shape: Shape
    memcpy_s: float
    ours_s: float
    nixl_s: float | None


def measure(nixl_python: str | None) -> list[Row]:
    """Copy every shape in every way, in turn.

    Args:
        nixl_python: An interpreter that has NIXL; None leaves it out.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    owner = context.Process(target=_own, args=(theirs,))
    owner.start()
    nixl = None if nixl_python is None else _Nixl(nixl_python)
    with closing(mmap.mmap(-1, POOL)) as pool:
        here = ctypes.c_char.from_buffer(pool)
        address = ctypes.addressof(here)
        ctypes.memset(address, 1, POOL)
        importer = SharedMemoryImporter(address, POOL)
        peer = importer.open(ours.recv())
        rows = []
        for shape in SHAPES:
            source, destination = pages(shape)
            runs = [
                CopyRun(a * shape.piece_bytes, b * shape.piece_bytes, shape.piece_bytes)
                for a, b in zip(source, destination, strict=True)
            ]
            by_hand = _memcpy(address, runs)
            times: dict[str, list[float]] = {"memcpy": [], "ours": [], "nixl": []}
            for _ in range(ROUNDS):
                times["memcpy"].append(_timed(by_hand))
                times["ours"].append(_timed(partial(peer.copy, runs)))
                if nixl is not None:
                    times["nixl"].append(nixl.copy(shape))
            found = {name: statistics.median(taken) for name, taken in times.items() if taken}
            rows.append(Row(shape, found["memcpy"], found["ours"], found.get("nixl")))
        peer.close()
        del here
    ours.send(None)
    owner.join()
    if nixl is not None:
        nixl.close()
    return rows


def _own(pipe: Connection) -> None:
    memory = SharedMemory("bench", POOL)
    with mmap.mmap(memory.fd, POOL) as mapped:
        for at in range(0, POOL, 1 << 20):
            mapped[at : at + (1 << 20)] = b"\x07" * (1 << 20)
        pipe.send(memory.handle())
        pipe.recv()


def _memcpy(address: int, runs: Sequence[CopyRun]) -> Callable[[], None]:
    """Return the least that such a copy can cost: one memmove of as many bytes in own memory.

    Each call takes the next place, as scattered pages are not where the last copy was either.
    """
    num_bytes, half = sum(run.length for run in runs), POOL // 2
    places = itertools.cycle(range(0, half - num_bytes + 1, max(num_bytes, half // ROUNDS)))

    def copy() -> None:
        at = address + next(places)
        ctypes.memmove(at + half, at, num_bytes)

    return copy


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


class _Nixl:
    """A process with NIXL that copies on request and says how long it took."""

    def __init__(self, python: str) -> None:
        process = subprocess.Popen(
            [python, str(PROGRAM), str(POOL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": ""},
            text=True,
        )
        self._process = process
        self._questions, self._answers = (
            cast("IO[str]", process.stdin),
            cast("IO[str]", process.stdout),
        )
        self._read()

    def copy(self, shape: Shape) -> float:
        source, destination = pages(shape)
        question = {"piece": shape.piece_bytes, "source": source, "destination": destination}
        print(json.dumps(question), file=self._questions, flush=True)
        return float(self._read())

    def close(self) -> None:
        self._questions.close()
        self._process.wait(20)

    def _read(self) -> str:
        for line in self._answers:
            if line.startswith("="):
                return line[1:]
        sys.exit("bench_kv: NIXL ended; does the interpreter given by --nixl have it?")
