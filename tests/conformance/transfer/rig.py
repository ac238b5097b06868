"""What the transfer suite needs of a transport; the fake driver or a real one stands behind it."""

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from nodeserve.device.cuda_vmm import map_fd
from nodeserve.transfer.base import Importer
from nodeserve.transfer.cuda_ipc import CudaIpcImporter
from nodeserve.transfer.cuda_vmm import CudaVmmImporter
from nodeserve.transfer.shared_memory import SharedMemoryImporter
from tests.support.pool_owner import OwnPool, PoolOwner

POOL_BYTES = 3 << 20


class Rig:
    """One transport between this process and owners of pools."""

    def __init__(self, transport: str, library: Path | str) -> None:
        self.transport = transport
        self.library = library
        self.own = OwnPool(transport, str(library), POOL_BYTES)
        self.own.write(bytes(POOL_BYTES))
        self.importer = self.importer_into(self.own.address, POOL_BYTES)
        self._stack = ExitStack()

    def owner(self, **environ: str) -> PoolOwner:
        """Start a peer."""
        made = PoolOwner(self.transport, str(self.library), POOL_BYTES, environ)
        return self._stack.enter_context(made)

    def open(self, owner: PoolOwner) -> Any:
        """Open a peer's pool; it is closed with the rig unless the test has."""
        return self.importer.open(owner.handle)

    def importer_into(self, address: int, num_bytes: int) -> Importer:
        """Return what copies into other memory of ours."""
        own = self.own
        match self.transport:
            case "shared_memory":
                return SharedMemoryImporter(address, num_bytes)
            case "cuda_ipc":
                return CudaIpcImporter(own.context, own.copier, address, num_bytes)
            case _:
                mapper = functools.partial(map_fd, own.context)
                ours = (own.copier, address, num_bytes)
                return CudaVmmImporter(own.context.uuid, mapper, *ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
