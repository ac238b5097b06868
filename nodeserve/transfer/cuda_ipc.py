"""KV pools in GPU memory: one handle for the allocation a pool lies in, opened once per peer.

A handle maps memory of another process into this one, for the device that is this process's own:
the owner's GPU need not be visible here, so GPUs are named by UUID and never by index. What is
mapped is undefined once its owner has ended: no copy begins then, and one that was under way does
not count. The mapping is closed, and the owner's next generation is opened anew.
"""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nodeserve.errors import DeviceError, PeerError
from nodeserve.kv.layout import CopyRun
from nodeserve.transfer.base import AddressRun, Handle
from nodeserve.transfer.cuda_copier import CudaCopier
from nodeserve.transfer.owner import Owner, started_ticks

TRANSPORT: Final = "cuda_ipc"

HANDLE_BYTES: Final = 64

_NUMBERS: Final = ("pid", "started", "offset", "bytes", "allocation_bytes")
_TEXTS: Final = ("uuid", "handle")

_logger = logging.getLogger(__name__)


class IpcDevice(Protocol):
    """The GPU whose memory is shared; device.cuda_driver.CudaContext is one."""

    @property
    def uuid(self) -> str:
        """As NVML writes it."""
        ...

    def reaches(self, uuid: str) -> bool | None:
        """Return whether this GPU reads that one's memory; None for unknown."""
        ...

    def allocation(self, address: int) -> tuple[int, int]:
        """Return base and size of what ``address`` is in."""
        ...

    def ipc_handle(self, base: int) -> bytes:
        """Return the handle of an allocation."""
        ...

    def open_ipc(self, handle: bytes) -> int:
        """Map another process's allocation."""
        ...

    def close_ipc(self, address: int) -> None:
        """Unmap it."""
        ...


def export_pool(device: IpcDevice, address: int, num_bytes: int) -> Handle:
    """Return the handle of the pool at ``address``; made once, and good while this process lives.

    Raises:
        DeviceError: The memory cannot be shared this way, such as that of expandable segments.
        PeerError: The pool reaches beyond the allocation it begins in.
    """
    base, allocation_bytes = device.allocation(address)
    offset = address - base
    if offset + num_bytes > allocation_bytes:
        text = (
            f"a KV pool of {num_bytes} bytes lies across several allocations (the first has "
            f"{allocation_bytes}); unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF"
        )
        raise PeerError(text)
    try:
        token = device.ipc_handle(base)
    except DeviceError as error:
        text = (
            f"the KV pool cannot be exported: {error}; memory of expandable segments and of sleep "
            "mode has no IPC handle: unset PYTORCH_CUDA_ALLOC_CONF, drop enable_sleep_mode"
        )
        raise DeviceError(text, function=error.function, code=error.code) from error
    return {
        "transport": TRANSPORT,
        "pid": os.getpid(),
        "started": started_ticks(os.getpid()),
        "uuid": device.uuid,
        "handle": token.hex(),
        "offset": offset,
        "bytes": num_bytes,
        "allocation_bytes": allocation_bytes,
    }


@dataclass(frozen=True, slots=True)
class _Key:
    """One allocation of one life of a process: a successor's equal handle is another key."""

    pid: int
    started: int
    handle: str


@dataclass(slots=True)
class _Mapping:
    address: int
    owner: Owner
    num_users: int


class IpcMappings:
    """All allocations of peers that are mapped here: one object per process, for any threads.

    The driver gives one address to all opens of a handle and unmaps at the last close; opened
    once here, no close of one user takes the memory from under another.
    """

    def __init__(self, device: IpcDevice) -> None:
        """Map for ``device``, this process's own."""
        self._device = device
        self._mappings: dict[_Key, _Mapping] = {}
        self._lock = threading.Lock()

    @property
    def num_mapped(self) -> int:
        """How many allocations are mapped."""
        return len(self._mappings)

    def open(self, key: _Key) -> _Mapping:
        """Return the mapping of ``key``, made if it is not there.

        Raises:
            PeerError: The owner has ended, or the driver cannot map its memory.
        """
        with self._lock:
            known = self._mappings.get(key)
            if known is None:
                known = self._mappings[key] = self._map(key)
            known.num_users += 1
            return known

    def close(self, key: _Key) -> None:
        """End one use; the last one unmaps, and lets an ended owner's memory go."""
        with self._lock:
            mapping = self._mappings[key]
            mapping.num_users -= 1
            if mapping.num_users:
                return
            del self._mappings[key]
            mapping.owner.close()
            try:
                # Under the lock, or who opens the same handle now would get what is being closed.
                self._device.close_ipc(mapping.address)
            except DeviceError as error:
                # Of an ended owner, or on a broken device: there is nothing left to give back.
                _logger.warning("cuda_ipc_close_failed pid=%d cause=%s", key.pid, error)

    def _map(self, key: _Key) -> _Mapping:
        owner = Owner(key.pid, key.started)
        try:
            address = self._device.open_ipc(bytes.fromhex(key.handle))
        except DeviceError as error:
            owner.close()
            text = (
                f"the GPU memory of process {key.pid} cannot be mapped: {error}; both processes "
                "must be in one PID namespace, on GPUs that reach each other"
            )
            raise DeviceError(text, function=error.function, code=error.code) from error
        return _Mapping(address, owner, 0)


class CudaIpcPool:
    """A peer's pool in GPU memory, with copies into one pool of this process."""

    def __init__(self, importer: "CudaIpcImporter", handle: Handle) -> None:
        """Map what ``handle`` describes; use CudaIpcImporter.open."""
        self._importer = importer
        self._num_bytes = int(handle["bytes"])
        self._same_gpu = handle["uuid"] == importer.uuid
        self._key = _Key(int(handle["pid"]), int(handle["started"]), str(handle["handle"]))
        self._mapping = importer.mappings.open(self._key)
        self._address = self._mapping.address + int(handle["offset"])

    def copy(self, runs: Sequence[CopyRun]) -> None:
        """Copy ``runs`` if the owner lives before and after; other threads run meanwhile."""
        addressed = addressed_runs(runs, self._address, self._num_bytes, self._importer)
        self._require_owner("before")
        copier = self._importer.copier
        (copier.copy_on_device if self._same_gpu else copier.copy)(addressed, None)
        # Memory whose owner ended under the copy may have been anybody's.
        self._require_owner("during")

    def is_current(self) -> bool:
        """Return whether the owner lives; without it the mapping must not be read."""
        return self._mapping.owner.is_alive()

    def close(self) -> None:
        """End this use of the mapping."""
        self._importer.mappings.close(self._key)

    def _require_owner(self, when: str) -> None:
        if not self._mapping.owner.is_alive():
            text = (
                f"process {self._key.pid} ended {when} a copy out of its GPU memory; the prompt "
                "is computed here"
            )
            raise PeerError(text)


class Destination(Protocol):
    """Where an importer copies to: a pool of this process."""

    address: int
    num_bytes: int


def addressed_runs(
    runs: Sequence[CopyRun], source: int, source_bytes: int, destination: Destination
) -> list[AddressRun]:
    """Return the copies at addresses.

    Raises:
        PeerError: One reaches outside its pool.
    """
    for run in runs:
        if (
            min(run) < 0
            or run.source + run.length > source_bytes
            or run.destination + run.length > destination.num_bytes
        ):
            text = (
                f"{run} is not inside pools of {source_bytes} and {destination.num_bytes} bytes; "
                "recompute the prompt"
            )
            raise PeerError(text)
    to = destination.address
    return [AddressRun(source + run.source, to + run.destination, run.length) for run in runs]


class CudaIpcImporter:
    """Opens peers' pools in GPU memory for copies into one pool of this process."""

    def __init__(self, device: IpcDevice, copier: CudaCopier, address: int, num_bytes: int) -> None:
        """Copy into ``num_bytes`` bytes at ``address`` on ``device``, by ``copier``."""
        self.uuid = device.uuid
        self.mappings = IpcMappings(device)
        self.copier = copier
        self.address = address
        self.num_bytes = num_bytes
        self._device = device

    def open(self, handle: Handle) -> CudaIpcPool:
        """Map the pool that ``handle`` describes.

        Raises:
            PeerError: The owner has ended, is this process itself, or is out of this GPU's reach;
                or the handle is malformed.
        """
        _check(handle)
        uuid = str(handle["uuid"])
        require_other_process(int(handle["pid"]))
        if self._device.reaches(uuid) is False:
            text = (
                f"{self.uuid} has no direct path to {uuid}: KV cannot be handed over between them; "
                "place the two workers on GPUs that reach each other (`nvidia-smi topo -p2p r`)"
            )
            raise PeerError(text)
        return CudaIpcPool(self, handle)


def require_other_process(pid: int) -> None:
    """Refuse a handle of this very process, which no driver opens.

    Raises:
        PeerError: It is.
    """
    if pid == os.getpid():
        text = (
            f"process {pid} was handed its own GPU memory, which cannot be opened where it was "
            "exported; the prompt is computed here"
        )
        raise PeerError(text)


def _check(handle: Handle) -> None:
    numbers = [handle.get(name) for name in _NUMBERS]
    texts = [handle.get(name) for name in _TEXTS]
    good = (
        handle.get("transport") == TRANSPORT
        and all(type(n) is int and n >= 0 for n in numbers)
        and all(type(t) is str for t in texts)
    )
    if good:
        try:
            token = bytes.fromhex(str(handle["handle"]))
        except ValueError:
            token = b""
        end = int(handle["offset"]) + int(handle["bytes"])
        inside = int(handle["bytes"]) > 0 and end <= int(handle["allocation_bytes"])
        good = len(token) == HANDLE_BYTES and inside
    if not good:
        text = f"a peer's GPU memory handle is malformed: {handle}; restart that worker"
        raise PeerError(text)
