"""NVIDIA GPUs by NVML, through nvidia-ml-py.

For the monitor alone: any call may hang for ever, and nothing else is done in the meantime.
"""

import ctypes
import logging
from typing import Any, Final

import pynvml

from nodeserve.device.base import Device, XidSeen
from nodeserve.device.nvml_gpu import LOST, AbsentGpu, NvmlGpu
from nodeserve.errors import DeviceError, DeviceLostError

_LOG: Final = logging.getLogger(__name__)

_EVENTS: Final = pynvml.nvmlEventTypeXidCriticalError
_NOT_FOUND: Final = LOST | {pynvml.NVML_ERROR_NOT_FOUND}


class Nvml:
    """The driver, and its events. One in a process, for one thread."""

    def __init__(self, library: str | None = None) -> None:
        """Load NVML, from the file ``library`` if given.

        Raises:
            DeviceError: There is no driver, or it does not work.
        """
        self._meters: dict[int | None, str] = {}
        try:
            if library is not None:
                pynvml.nvmlLib = ctypes.CDLL(library)
            pynvml.nvmlInit()
            self._events: Any = pynvml.nvmlEventSetCreate()
        except (OSError, pynvml.NVMLError) as error:
            raise DeviceError(
                f"NVML cannot be opened: {error}; load the NVIDIA driver, see `nvidia-smi`"
            ) from error

    def open_gpu(self, uuid: str, index: int) -> Device:
        """Return the GPU that the operator knows as number ``index``; one that is lost, too.

        Raises:
            DeviceError: The driver is gone.
        """
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
            gpu = NvmlGpu(handle, uuid, index)
        except DeviceLostError as error:
            return AbsentGpu(uuid, index, f"does not answer: {error}")
        except pynvml.NVMLError as error:
            if error.value not in _NOT_FOUND:
                raise DeviceError(f"GPU {uuid} cannot be opened: {error}; see `dmesg`") from error
            return AbsentGpu(uuid, index, f"the driver does not find it: {error}")
        self._listen(handle, uuid)
        return gpu

    def take_xids(self) -> list[XidSeen]:
        """Return the XIDs that NVML has reported since the last call. It does not report all."""
        seen: list[XidSeen] = []
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    _LOG.warning("nvml_events_lost cause=%s", error)
                    self._events = None
                break
            meter = self._meters.get(_address(event.device))
            if meter is not None:
                number = int(event.eventData)
                seen.append(XidSeen(number=number, source="nvml", text="", meter=meter))
        return seen

    def close(self) -> None:
        """Let go of NVML."""
        if self._events is not None:
            pynvml.nvmlEventSetFree(self._events)
            self._events = None
        pynvml.nvmlShutdown()

    def _listen(self, handle: Any, uuid: str) -> None:
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, _EVENTS, self._events)
        except pynvml.NVMLError as error:
            _LOG.info("nvml_events_not_had gpu=%s cause=%s", uuid, error)
            return
        self._meters[_address(handle)] = uuid


def _address(handle: Any) -> int | None:
    """Return what tells one device's handle from another's."""
    return ctypes.cast(handle, ctypes.c_void_p).value
