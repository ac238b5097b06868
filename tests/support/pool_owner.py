"""A process that owns a pool of some transport and does as it is told; and its face in a test.

As a program: ``python -m tests.support.pool_owner TRANSPORT LIBRARY NUM_BYTES``. It prints its
handle as JSON, then answers each line of its input: ``fill SEED`` writes a pattern.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from nodeserve.device.cuda_driver import CudaContext, CudaDriver
from nodeserve.device.cuda_vmm import VmmMemory
from nodeserve.transfer import cuda_ipc, cuda_vmm, shared_memory
from nodeserve.transfer.base import AddressRun, Handle
from nodeserve.transfer.cuda_copier import CudaCopier
from nodeserve.transfer.shared_memory import SharedMemory

ROOT = Path(__file__).resolve().parents[2]
OFFSET = 512
"""Pools begin within an allocation, as torch's do."""


def pattern(seed: int, num_bytes: int) -> bytes:
    line = bytes((i * 7 + seed) % 251 for i in range(251 * 16))
    return (line * (num_bytes // len(line) + 1))[:num_bytes]


class PoolOwner:
    """Owns a pool in a process of its own."""

    def __init__(
        self, transport: str, library: str, num_bytes: int, environ: dict[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "tests.support.pool_owner"]
        self.process = subprocess.Popen(
            [*command, transport, library, str(num_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
        self.handle: Handle = self._answer()

    def fill(self, seed: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"fill {seed}\n")
        self.process.stdin.flush()
        self._answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the owner of a pool has ended"
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class OwnPool:
    """A pool of this process that any transport can fill and a test can look into."""

    def __init__(self, transport: str, library: str, num_bytes: int, ordinal: int = 0) -> None:
        self.num_bytes = num_bytes
        self._memory: Any = None
        if transport == shared_memory.TRANSPORT:
            self._memory = (ctypes.c_char * num_bytes)()
            self.address = ctypes.addressof(self._memory)
            return
        self.context = CudaContext(CudaDriver(library), ordinal)
        self.copier = CudaCopier(self.context, self._compute_stream().__int__)
        if transport == cuda_vmm.TRANSPORT:
            self._memory = VmmMemory(self.context, num_bytes)
            self.address = self._memory.address
        else:
            self.address = self.context.allocate(OFFSET + num_bytes) + OFFSET

    def _compute_stream(self) -> int:
        self.compute = self.context.stream()
        return self.compute

    def handle(self) -> Handle:
        if isinstance(self._memory, VmmMemory):
            return cuda_vmm.export_memory(self._memory, self.context.uuid, self.num_bytes)
        return cuda_ipc.export_pool(self.context, self.address, self.num_bytes)

    def write(self, data: bytes) -> None:
        buffer = (ctypes.c_char * len(data)).from_buffer_copy(data)
        self._move(AddressRun(ctypes.addressof(buffer), self.address, len(data)))

    def read(self, offset: int = 0, num_bytes: int | None = None) -> bytes:
        num_bytes = self.num_bytes - offset if num_bytes is None else num_bytes
        buffer = (ctypes.c_char * num_bytes)()
        self._move(AddressRun(self.address + offset, ctypes.addressof(buffer), num_bytes))
        return buffer.raw

    def _move(self, run: AddressRun) -> None:
        if hasattr(self, "copier"):
            self.copier.copy([run], None)
        else:
            ctypes.memmove(run.destination, run.source, run.length)


def main() -> None:
    transport, library, num_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    pool: Any
    if transport == shared_memory.TRANSPORT:
        memory = SharedMemory("nodeserve-test", num_bytes)
        handle, write = memory.handle(), lambda data: os.pwrite(memory.fd, data, 0)
    else:
        pool = OwnPool(transport, library, num_bytes)
        handle, write = pool.handle(), pool.write
    _say(handle)
    for line in sys.stdin:
        _, seed = line.split()
        write(pattern(int(seed), num_bytes))
        _say(None)


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
