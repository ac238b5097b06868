"""One NVIDIA GPU as NVML sees it, by nvidia-ml-py; see ``device.nvml``."""

import ctypes
import logging
from collections.abc import Callable, Collection
from typing import Any, Final

import pynvml

from nodeserve.device.base import Condition, Now, State
from nodeserve.device.kernel_log import pci_address
from nodeserve.errors import DeviceError, DeviceLostError
from nodeserve.wire.accounting import Meter

_LOG: Final = logging.getLogger(__name__)

LOST: Final = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
)
_GONE: Final = frozenset({pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_NEVER: Final = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})

_NVLINK_ERRORS: Final = (
    pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
    pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
)
_UNKNOWN_NAME: Final = "unknown GPU"


class NvmlGpu:
    """One GPU."""

    def __init__(self, handle: Any, uuid: str, index: int) -> None:
        """Ask who it is; raises DeviceLostError for one that does not say."""
        self._handle = handle
        self._uuid = uuid
        self._unsupported: set[tuple[str, tuple[int, ...]]] = set()
        pci = self._ask(pynvml.nvmlDeviceGetPciInfo)
        self._pci = None if pci is None else pci_address(str(pci.busId))
        energy_mj = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        limits_mw = self._ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints)
        self._meter = Meter(
            meter=uuid,
            kind="gpu",
            name=str(self._ask(pynvml.nvmlDeviceGetName) or _UNKNOWN_NAME),
            source="nvml-power" if energy_mj is None else "nvml-counter",
            index=index,
            max_power_mw=None if limits_mw is None else int(limits_mw[1]),
        )

    @property
    def meter(self) -> Meter:
        """What it is; without a counter of energy its power is to be integrated."""
        return self._meter

    @property
    def pci(self) -> str | None:
        """Its PCI address without the function."""
        return self._pci

    def read_now(self) -> Now:
        """Ask four things. ``power_mw`` is the driver's mean of a second since Ampere."""
        return Now(
            counter_mj=self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption),
            power_mw=self._ask(pynvml.nvmlDeviceGetPowerUsage),
            sm_clock_mhz=self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            throttle=self._ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons),
        )

    def read_state(self) -> State:
        """Ask six things."""
        rates = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo)
        return State(
            utilization=None if rates is None else rates.gpu / 100,
            temperature_c=self._ask(pynvml.nvmlDeviceGetTemperatureV, pynvml.NVML_TEMPERATURE_GPU),
            memory_temperature_c=self._field(pynvml.NVML_FI_DEV_MEMORY_TEMP),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            memory_clock_mhz=self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            power_limit_mw=self._ask(pynvml.nvmlDeviceGetEnforcedPowerLimit),
        )

    def read_condition(self) -> Condition:
        """Ask some forty things, most of them of the NVLinks."""
        corrected, uncorrected = (
            self._ask(pynvml.nvmlDeviceGetTotalEccErrors, kind, pynvml.NVML_VOLATILE_ECC)
            for kind in (
                pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            )
        )
        rows = self._ask(pynvml.nvmlDeviceGetRemappedRows)
        links = self._links()
        down = () if links is None else tuple(n for n, is_up in links.items() if not is_up)
        persistence = self._ask(pynvml.nvmlDeviceGetPersistenceMode)
        return Condition(
            ecc_corrected=corrected,
            ecc_uncorrected=uncorrected,
            remapped_rows=None if rows is None else rows[0] + rows[1],
            remap_pending=None if rows is None else bool(rows[2]),
            remap_failed=None if rows is None else bool(rows[3]),
            nvlink_errors=self._nvlink_errors(links),
            num_nvlinks=None if links is None else len(links),
            nvlinks_down=down,
            pcie_replays=self._ask(pynvml.nvmlDeviceGetPcieReplayCounter),
            pcie_generation=self._ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
            pcie_width=self._ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth),
            pcie_max_generation=self._ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration),
            pcie_max_width=self._ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth),
            slowdown_temperature_c=self._ask(
                pynvml.nvmlDeviceGetTemperatureThreshold, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            ),
            is_sram_worn=self._ask(_is_sram_worn),
            is_fabric_complete=self._ask(_is_fabric_complete),
            is_persistent=None if persistence is None else bool(persistence),
            recovery_action=self._field(pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION),
        )

    def _links(self) -> dict[int, bool] | None:
        """Return which NVLinks are up; None where the GPU has none."""
        states = {
            link: self._ask(pynvml.nvmlDeviceGetNvLinkState, link)
            for link in range(pynvml.NVML_NVLINK_MAX_LINKS)
        }
        links = {n: bool(state) for n, state in states.items() if state is not None}
        return links or None

    def _nvlink_errors(self, links: Collection[int] | None) -> int | None:
        """Return the errors of all links, by field where the GPU knows those, else by link."""
        counts = [self._field(field) for field in _NVLINK_ERRORS]
        if links and all(count is None for count in counts):
            kinds = range(pynvml.NVML_NVLINK_ERROR_COUNT)
            counts = [
                self._ask(pynvml.nvmlDeviceGetNvLinkErrorCounter, link, kind)
                for link in links
                for kind in kinds
            ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _field(self, field: int) -> int | None:
        """Return a field's value, or None; each is asked for alone, since few are known to all."""
        answers = self._ask(_field_values, field)
        if answers is None:
            return None
        answer = answers[0]
        if answer.nvmlReturn != pynvml.NVML_SUCCESS:
            self._refused(_field_values, (field,), answer.nvmlReturn)
            return None
        is_long = answer.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        return int(answer.value.ullVal if is_long else answer.value.uiVal)

    def _ask(self, call: Callable[..., Any], *args: int) -> Any:
        """Return what a call answers; None for what this GPU does not say."""
        if (call.__name__, args) in self._unsupported:
            return None
        try:
            return call(self._handle, *args)
        except pynvml.NVMLError as error:
            self._refused(call, args, error.value)
            return None

    def _refused(self, call: Callable[..., Any], args: tuple[int, ...], code: int) -> None:
        """Take note of a call that failed."""
        name = call.__name__
        if code in LOST or code in _GONE:
            kind = DeviceLostError if code in LOST else DeviceError
            raise kind(
                f"{self._uuid}: {name} failed with {code} ({pynvml.NVMLError(code)}); "
                "see `dmesg`, and reset the GPU or restart the machine",
                function=name,
                code=code,
            )
        if code in _NEVER:
            self._unsupported.add((name, args))
        else:
            _LOG.debug("nvml_refused gpu=%s call=%s code=%d", self._uuid, name, code)


class AbsentGpu:
    """A GPU that the node should have, and that its driver does not find."""

    pci: str | None = None

    def __init__(self, uuid: str, index: int, cause: str) -> None:
        self.meter = Meter(
            meter=uuid, kind="gpu", name=_UNKNOWN_NAME, source="nvml-counter", index=index
        )
        self._cause = cause

    def read_now(self) -> Now:
        """Raise DeviceLostError."""
        raise DeviceLostError(f"{self.meter.meter}: {self._cause}; see `dmesg`")

    def read_state(self) -> State:
        """Raise DeviceLostError."""
        raise DeviceLostError(f"{self.meter.meter}: {self._cause}; see `dmesg`")

    def read_condition(self) -> Condition:
        """Raise DeviceLostError."""
        raise DeviceLostError(f"{self.meter.meter}: {self._cause}; see `dmesg`")


def _field_values(handle: Any, field: int) -> Any:
    return pynvml.nvmlDeviceGetFieldValues(handle, [field])


def _is_sram_worn(handle: Any) -> bool:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return bool(status.bThresholdExceeded)


def _is_fabric_complete(handle: Any) -> bool | None:
    """Return None where the GPU is on no NVSwitch."""
    fabric = pynvml.c_nvmlGpuFabricInfoV_t()
    pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(fabric))
    if fabric.state == pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
        return None
    is_complete = fabric.state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED
    return bool(is_complete and fabric.status == pynvml.NVML_SUCCESS)
