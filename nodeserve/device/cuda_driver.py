"""The CUDA driver, called by ctypes: no torch, no package, nothing compiled.

Only what moving KV between processes takes. Every call that needs a context makes the device's
primary one current for its time, so that any thread may call; torch uses the same context.
ctypes lets go of the GIL for the length of each call.
Source of numbers and signatures: cuda.h of CUDA 13.0, whose entry points these are by their
exported names; the fake driver of the tests is compiled against it.
"""

import ctypes
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final, NamedTuple

from nodeserve.errors import DeviceError

_logger = logging.getLogger(__name__)

LIBRARY: Final = "libcuda.so.1"

IPC_HANDLE_BYTES: Final = 64

NO_DEVICE: Final = 100
INVALID_CONTEXT: Final = 201
ALREADY_MAPPED: Final = 208
PEER_ACCESS_UNSUPPORTED: Final = 217
ILLEGAL_ADDRESS: Final = 700
HOST_MEMORY_ALREADY_REGISTERED: Final = 712

VMM_SUPPORTED: Final = 102
FD_HANDLES_SUPPORTED: Final = 103

_STREAM_NON_BLOCKING: Final = 1
_EVENT_BLOCKING_SYNC: Final = 1
_EVENT_DISABLE_TIMING: Final = 2
_LAZY_ENABLE_PEER_ACCESS: Final = 1
_HOST_REGISTER_PORTABLE: Final = 1
_SOURCE_ORDER_STREAM: Final = 1
_PREFER_OVERLAP_WITH_COMPUTE: Final = 1

_OUT_OF_MEMORY: Final = 2

_INVALID_VALUE: Final = 1
_NOT_SUPPORTED: Final = 801
"""Of a batch: there is something in it that batches do not take; or no batch is taken at all."""

_ADVICE: Final = {
    1: "the handle or address is stale or of another kind of memory",
    _OUT_OF_MEMORY: "the GPU is full: give workers less kv_cache_memory_bytes",
    NO_DEVICE: "CUDA_VISIBLE_DEVICES names no GPU of this machine",
    INVALID_CONTEXT: "the memory is this process's own, or its device was never opened here",
    PEER_ACCESS_UNSUPPORTED: "these two GPUs cannot read each other: see `nvidia-smi topo -p2p r`",
    ILLEGAL_ADDRESS: "the memory behind an address is gone; this process must be replaced",
    801: "the driver or this kind of GPU does not have it",
    802: "start nvidia-fabricmanager",
}


class CudaDevice(NamedTuple):
    """One GPU that this process may use; ``ordinal`` counts what CUDA_VISIBLE_DEVICES shows."""

    ordinal: int
    uuid: str
    name: str
    pci: str


class _Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class _CopyAttributes(ctypes.Structure):
    _fields_ = (
        ("source_order", c_int),
        ("source", _Location),
        ("destination", _Location),
        ("flags", c_uint),
    )


class _IpcHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * IPC_HANDLE_BYTES),)


class CudaDriver:
    """The driver's library in this process, initialised."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load and initialise; no context is made yet.

        Raises:
            DeviceError: There is no driver, or it shows no GPU.
        """
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            text = f"the CUDA driver cannot be loaded: {error}; install NVIDIA's driver"
            raise DeviceError(text) from error
        # A pointer that ctypes does not know as one would be cut to 32 bits.
        self._library.cuIpcOpenMemHandle_v2.argtypes = (c_void_p, _IpcHandle, c_uint)
        self.call("cuInit", c_uint(0))

    def call(self, function: str, *arguments: Any) -> None:
        """Call one entry point.

        Raises:
            DeviceError: Naming the function, the code and its name, and what to do.
        """
        code = int(getattr(self._library, function)(*arguments))
        if code:
            name = c_char_p()
            self._library.cuGetErrorName(c_int(code), byref(name))
            shown = name.value.decode() if name.value else "unknown"
            advice = _ADVICE.get(code, "see the kernel's log (`dmesg`) for Xid errors")
            text = f"CUDA driver: {function} failed with {code} ({shown}): {advice}"
            raise DeviceError(text, function=function, code=code)

    def has(self, function: str) -> bool:
        """Return whether this driver has an entry point."""
        return hasattr(self._library, function)

    def version(self) -> str:
        """Return the newest CUDA version that the driver speaks, such as 13.0."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def devices(self) -> tuple[CudaDevice, ...]:
        """Return the GPUs that this process may use."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return tuple(self._device(ordinal) for ordinal in range(count.value))

    def device_by_uuid(self, uuid: str) -> CudaDevice | None:
        """Return the GPU of that UUID; None where CUDA_VISIBLE_DEVICES hides it."""
        return next((device for device in self.devices() if device.uuid == uuid), None)

    def attribute(self, ordinal: int, attribute: int) -> int:
        """Return one number of a device, such as VMM_SUPPORTED."""
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), c_int(attribute), c_int(ordinal))
        return value.value

    def can_access_peer(self, ordinal: int, peer: int) -> bool:
        """Return whether one GPU reads another's memory directly; both must be visible."""
        can = c_int()
        self.call("cuDeviceCanAccessPeer", byref(can), c_int(ordinal), c_int(peer))
        return bool(can.value)

    def _device(self, ordinal: int) -> CudaDevice:
        device = c_int()
        self.call("cuDeviceGet", byref(device), c_int(ordinal))
        uuid, name, pci = (ctypes.create_string_buffer(size) for size in (16, 128, 32))
        self.call("cuDeviceGetUuid_v2", uuid, device)
        self.call("cuDeviceGetName", name, c_int(128), device)
        self.call("cuDeviceGetPCIBusId", pci, c_int(32), device)
        named = name.value.decode()
        return CudaDevice(ordinal, _uuid_text(uuid.raw, named), named, pci.value.decode())


def _uuid_text(raw: bytes, name: str) -> str:
    """Write a UUID as NVML, nvidia-smi and CUDA_VISIBLE_DEVICES do.

    The driver gives the UUID of an instance of a divided GPU, and says so only in the name.
    Source: cuDeviceGetUuid_v2; NVIDIA's MIG user guide, "CUDA device enumeration".
    """
    kind = "MIG-" if " MIG " in name else "GPU-"
    digits = raw.hex()
    cuts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return kind + "-".join(cuts)


class CudaContext:
    """A device's primary context, the one that torch uses too.

    Streams and events are the driver's own pointers, as torch shows them by ``cuda_stream``.
    """

    def __init__(self, driver: CudaDriver, ordinal: int) -> None:
        """Retain the context, which takes some hundred MB where nobody has made it yet."""
        self.driver = driver
        self.device = driver.devices()[ordinal]
        self._takes_batches = driver.has("cuMemcpyBatchAsync")
        self._told: set[int] = set()
        self._context = c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), c_int(ordinal))

    @property
    def uuid(self) -> str:
        """The device's."""
        return self.device.uuid

    @contextmanager
    def current(self) -> Generator[None]:
        """Make the context the calling thread's for the time being."""
        self.driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def call(self, function: str, *arguments: Any) -> None:
        """Call one entry point in this context."""
        with self.current():
            self.driver.call(function, *arguments)

    def close(self) -> None:
        """Give the context back; it lives on while torch has it."""
        self.driver.call("cuDevicePrimaryCtxRelease_v2", c_int(self.device.ordinal))

    def reaches(self, uuid: str) -> bool | None:
        """Return whether this GPU reads that one's memory; None where it is hidden from us."""
        if uuid == self.uuid:
            return True
        peer = self.driver.device_by_uuid(uuid)
        if peer is None:
            return None
        return self.driver.can_access_peer(self.device.ordinal, peer.ordinal)

    # ------------------------------------------------------------------ memory

    def allocate(self, num_bytes: int) -> int:
        """Return the address of new memory."""
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(num_bytes))
        return pointer.value

    def allocate_up_to(self, num_bytes: int, least_bytes: int) -> tuple[int, int]:
        """Return the address of new memory and how much it is: less where the GPU is nearly full.

        Raises:
            DeviceError: There are not even ``least_bytes``.
        """
        while True:
            try:
                return self.allocate(num_bytes), num_bytes
            except DeviceError as error:
                if error.code != _OUT_OF_MEMORY or num_bytes // 2 < least_bytes:
                    raise
            num_bytes //= 2

    def free(self, address: int) -> None:
        """Give back what ``allocate`` returned."""
        self.call("cuMemFree_v2", c_uint64(address))

    def allocation(self, address: int) -> tuple[int, int]:
        """Return base and size of the allocation that ``address`` is in."""
        base, size = c_uint64(), c_size_t()
        self.call("cuMemGetAddressRange_v2", byref(base), byref(size), c_uint64(address))
        return base.value, size.value

    def ipc_handle(self, base: int) -> bytes:
        """Return the handle of the allocation at ``base``, for other processes."""
        handle = _IpcHandle()
        self.call("cuIpcGetMemHandle", byref(handle), c_uint64(base))
        return bytes(handle)

    def open_ipc(self, handle: bytes) -> int:
        """Map another process's allocation and return where; a second open counts."""
        pointer = c_uint64()
        token = _IpcHandle.from_buffer_copy(handle)
        flags = c_uint(_LAZY_ENABLE_PEER_ACCESS)
        self.call("cuIpcOpenMemHandle_v2", byref(pointer), token, flags)
        return pointer.value

    def close_ipc(self, address: int) -> None:
        """Undo one ``open_ipc``."""
        self.call("cuIpcCloseMemHandle", c_uint64(address))

    def register_host(self, address: int, num_bytes: int) -> None:
        """Pin host memory, which takes some 0.1 s a GB."""
        flags = c_uint(_HOST_REGISTER_PORTABLE)
        self.call("cuMemHostRegister_v2", c_void_p(address), c_size_t(num_bytes), flags)

    def unregister_host(self, address: int) -> None:
        """Undo ``register_host``."""
        self.call("cuMemHostUnregister", c_void_p(address))

    # ------------------------------------------------------- streams and copies

    def stream(self) -> int:
        """Return a new stream, which does not wait for the default one."""
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), c_uint(_STREAM_NON_BLOCKING))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """End a stream; what it was asked for is still done."""
        self.call("cuStreamDestroy_v2", c_void_p(stream))

    def event(self, *, timed: bool = False) -> int:
        """Return a new event; waiting for it sleeps instead of spinning."""
        event = c_void_p()
        flags = _EVENT_BLOCKING_SYNC | (0 if timed else _EVENT_DISABLE_TIMING)
        self.call("cuEventCreate", byref(event), c_uint(flags))
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        """End an event."""
        self.call("cuEventDestroy_v2", c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        """Let ``event`` stand behind all that ``stream`` was asked for."""
        self.call("cuEventRecord", c_void_p(event), c_void_p(stream))

    def wait_event(self, stream: int, event: int) -> None:
        """Let ``stream`` go on only behind ``event``."""
        self.call("cuStreamWaitEvent", c_void_p(stream), c_void_p(event), c_uint(0))

    def synchronize(self, event: int) -> None:
        """Return when ``event`` is reached."""
        self.call("cuEventSynchronize", c_void_p(event))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Return the time between two timed events that were reached."""
        elapsed = c_float()
        name = "cuEventElapsedTime_v2"
        if not self.driver.has(name):  # older than 12.8
            name = "cuEventElapsedTime"
        self.call(name, byref(elapsed), c_void_p(begin), c_void_p(end))
        return elapsed.value

    def fill(self, address: int, value: int, num_bytes: int, stream: int) -> None:
        """Set bytes."""
        call = (c_uint64(address), ctypes.c_ubyte(value), c_size_t(num_bytes), c_void_p(stream))
        self.call("cuMemsetD8Async", *call)

    def copy_each(self, runs: Sequence[tuple[int, int, int]], stream: int) -> None:
        """Ask for one copy after another; within one GPU, its SMs do them."""
        with self.current():
            for source, destination, length in runs:
                addresses = (c_uint64(destination), c_uint64(source))
                self.driver.call("cuMemcpyAsync", *addresses, c_size_t(length), c_void_p(stream))

    def copy_batch(self, runs: Sequence[tuple[int, int, int]], stream: int) -> None:
        """Ask for many copies, by copy engines, in one call where the driver has it (12.8)."""
        newest, first = "cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync"
        runs = [run for run in runs if run[2]]
        if not (runs and self._takes_batches):
            self.copy_each(runs, stream)
            return
        count = len(runs)
        sources, destinations, sizes = zip(*runs, strict=True)
        attributes = _CopyAttributes(
            source_order=_SOURCE_ORDER_STREAM, flags=_PREFER_OVERLAP_WITH_COMPUTE
        )
        arguments = [
            (c_uint64 * count)(*destinations),
            (c_uint64 * count)(*sources),
            (c_size_t * count)(*sizes),
            c_size_t(count),
            byref(attributes),
            byref(c_size_t(0)),
            c_size_t(1),
        ]
        try:
            if self.driver.has(newest):
                self.call(newest, *arguments, c_void_p(stream))
            else:
                self.call(first, *arguments, byref(c_size_t()), c_void_p(stream))
        except DeviceError as error:
            if error.code not in (_INVALID_VALUE, _NOT_SUPPORTED):
                raise
            # Whatever a driver does not take in a batch it takes one by one, or says what is wrong.
            # One batch with memory that is not pinned must not slow the others down.
            self._takes_batches = error.code != _NOT_SUPPORTED
            if error.code not in self._told:
                self._told.add(error.code)
                _logger.warning("cuda_batch_refused num_copies=%d cause=%s", count, error)
            self.copy_each(runs, stream)
