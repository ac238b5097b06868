"""What a GPU's health and energy are read from, by nvidia-ml-py; and a stand-in for it."""

from typing import Any

FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "power, mW": ("nvmlDeviceGetPowerUsage", ()),
    "power limit, mW": ("nvmlDeviceGetEnforcedPowerLimit", ()),
    "energy, mJ": ("nvmlDeviceGetTotalEnergyConsumption", ()),
    "temperature": ("nvmlDeviceGetTemperature", (0,)),
    "utilisation": ("nvmlDeviceGetUtilizationRates", ()),
    "SM clock": ("nvmlDeviceGetClockInfo", (1,)),
    "throttle reasons": ("nvmlDeviceGetCurrentClocksEventReasons", ()),
    "memory": ("nvmlDeviceGetMemoryInfo", ()),
    "ECC errors": ("nvmlDeviceGetTotalEccErrors", (1, 0)),
    "remapped rows": ("nvmlDeviceGetRemappedRows", ()),
    "processes": ("nvmlDeviceGetComputeRunningProcesses", ()),
}


def missing_fields(nvml: Any, uuid: str) -> list[str]:
    """Return the fields that ``nvml`` does not have of a GPU, each with the reason."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    missing = []
    for name, (function, arguments) in FIELDS.items():
        try:
            getattr(nvml, function)(handle, *arguments)
        except (nvml.NVMLError, AttributeError) as error:
            missing.append(f"{name}: {error}")
    return missing


class FakeNvmlFields:
    """Has every function of nvidia-ml-py but ``absent``; its GPU does not have ``unsupported``."""

    class NVMLError(Exception):
        """As nvidia-ml-py's."""

    def __init__(self, *, unsupported: str = "", absent: str = "") -> None:
        self._unsupported, self._absent = unsupported, absent

    def __getattr__(self, name: str) -> Any:
        if name == self._absent:
            raise AttributeError(name)
        return self._refuse if name == self._unsupported else lambda *_: "fake"

    def _refuse(self, *_: Any) -> None:
        raise self.NVMLError("Not Supported")
