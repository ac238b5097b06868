"""GPU memory that other processes map by a file descriptor, and that outlives its owner.

A piece is created with a size that is a multiple of the device's granularity, exported as a file
descriptor, and mapped at reserved addresses, by its owner and by whoever imports it; it exists
while any mapping or descriptor of it does.
"""

import ctypes
import os
from contextlib import ExitStack
from ctypes import byref, c_int, c_size_t, c_uint64, c_ulonglong, c_void_p
from typing import Final

from nodeserve.device.cuda_driver import FD_HANDLES_SUPPORTED, VMM_SUPPORTED, CudaContext
from nodeserve.errors import DeviceError

_PINNED: Final = 1
_DEVICE: Final = 1
_POSIX_FD: Final = 1
_GRANULARITY_MINIMUM: Final = 0
_READ: Final = 1
_READ_WRITE: Final = 3


class _Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class _Properties(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("windows", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", c_int))


class VmmMapping:
    """One piece, mapped at ``address`` in this process."""

    def __init__(
        self, context: CudaContext, handle: c_ulonglong, num_bytes: int, access: int
    ) -> None:
        """Map the piece; ``handle`` is used up, for the mapping itself keeps the memory."""
        self._context = context
        self.num_bytes = num_bytes
        pointer, size, zero = c_uint64(), c_size_t(num_bytes), c_ulonglong(0)
        # What fails half-way gives back what it had: a peer is tried again and again.
        with ExitStack() as undo:
            undo.callback(context.call, "cuMemRelease", handle)
            reserve = (byref(pointer), size, c_size_t(0), c_uint64(0), zero)
            context.call("cuMemAddressReserve", *reserve)
            address = c_uint64(pointer.value)
            undo.callback(context.call, "cuMemAddressFree", address, size)
            context.call("cuMemMap", address, size, c_size_t(0), handle, zero)
            undo.callback(context.call, "cuMemUnmap", address, size)
            location = _Location(_DEVICE, context.device.ordinal)
            wanted = _Access(location, access)
            context.call("cuMemSetAccess", address, size, byref(wanted), c_size_t(1))
            undo.pop_all()
        context.call("cuMemRelease", handle)
        self.address = address.value

    def close(self) -> None:
        """Unmap; the address is invalid from here on."""
        address, size = c_uint64(self.address), c_size_t(self.num_bytes)
        self._context.call("cuMemUnmap", address, size)
        self._context.call("cuMemAddressFree", address, size)


class VmmMemory:
    """New memory of this process, with a descriptor ``fd`` for others."""

    def __init__(self, context: CudaContext, num_bytes: int) -> None:
        """Create and map ``num_bytes`` bytes, rounded up; their content is undefined.

        Raises:
            DeviceError: The GPU is full, or does not give memory by descriptor.
        """
        require_vmm(context)
        properties = _properties(context)
        granularity = c_size_t()
        minimum = c_int(_GRANULARITY_MINIMUM)
        asked = (byref(granularity), byref(properties), minimum)
        context.call("cuMemGetAllocationGranularity", *asked)
        rounded = -(-num_bytes // granularity.value) * granularity.value
        handle = c_ulonglong()
        create = (byref(handle), c_size_t(rounded), byref(properties), c_ulonglong(0))
        context.call("cuMemCreate", *create)
        fd = c_int(-1)
        export = (byref(fd), handle, c_int(_POSIX_FD), c_ulonglong(0))
        try:
            context.call("cuMemExportToShareableHandle", *export)
        except DeviceError:
            context.call("cuMemRelease", handle)
            raise
        self.fd = fd.value
        try:
            self._mapping = VmmMapping(context, handle, rounded, _READ_WRITE)
        except DeviceError:
            os.close(self.fd)
            raise
        self.address = self._mapping.address
        self.num_bytes = rounded

    def close(self) -> None:
        """Unmap. Whoever has it mapped keeps the bytes."""
        os.close(self.fd)
        self._mapping.close()


def map_fd(context: CudaContext, fd: int, num_bytes: int) -> VmmMapping:
    """Map, for reading, the piece of ``num_bytes`` bytes that ``fd`` stands for.

    Raises:
        DeviceError: It stands for no such piece, or the two GPUs do not reach each other.
    """
    handle = c_ulonglong()
    imported = (byref(handle), c_void_p(fd), c_int(_POSIX_FD))
    context.call("cuMemImportFromShareableHandle", *imported)
    return VmmMapping(context, handle, num_bytes, _READ)


def require_vmm(context: CudaContext) -> None:
    """Refuse a device that gives no memory by file descriptor.

    Raises:
        DeviceError: It does not.
    """
    ordinal = context.device.ordinal
    for attribute in (VMM_SUPPORTED, FD_HANDLES_SUPPORTED):
        if not context.driver.attribute(ordinal, attribute):
            text = (
                f"{context.device.name} gives no memory by file descriptor (attribute "
                f"{attribute} is 0); use the transport cuda_ipc"
            )
            raise DeviceError(text)


def _properties(context: CudaContext) -> _Properties:
    location = _Location(_DEVICE, context.device.ordinal)
    return _Properties(type=_PINNED, handle_types=_POSIX_FD, location=location)
