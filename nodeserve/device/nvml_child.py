"""The child process that asks NVML for the GPUs and prints a GpuReport as JSON.

Run as ``python -m nodeserve.device.nvml_child`` by nodeserve.device.topology.
"""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

import msgspec
import pynvml

from nodeserve.config.facts import Gpu
from nodeserve.device.topology import GpuReport

_P2P_READ: Final = 0
"""NVML_P2P_CAPS_INDEX_READ of nvml.h; a stray comma makes a tuple of it in nvidia-ml-py 13."""

_SYS_PCI: Final = Path("/sys/bus/pci/devices")


class Nvml(Protocol):
    """What is asked of the driver; NvmlLibrary in earnest, a fake in tests."""

    def open(self) -> str:
        """Return the driver's version; raises GpuAbsentError where there is no driver."""
        ...

    def num_gpus(self) -> int:
        """Return how many GPUs the driver has."""
        ...

    def gpu(self, index: int) -> Mapping[str, str | int]:
        """Return ``uuid``, ``name``, ``memory_bytes`` and ``pci`` of one GPU."""
        ...

    def reads_peer(self, index: int, peer: int) -> bool:
        """Return whether one GPU can read another's memory directly."""
        ...


class GpuAbsentError(Exception):
    """This machine has no NVIDIA driver."""


class NvmlLibrary:
    """NVML by nvidia-ml-py."""

    def __init__(self, library: ModuleType = pynvml) -> None:
        self._nvml = library

    def open(self) -> str:
        """Load the library."""
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            absent = (
                self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
                self._nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            )
            if error.value in absent:
                raise GpuAbsentError from error
            raise
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def num_gpus(self) -> int:
        """Count."""
        return int(self._nvml.nvmlDeviceGetCount())

    def gpu(self, index: int) -> Mapping[str, str | int]:
        """Ask for one GPU by NVML's index, which is the order of PCI addresses."""
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return {
            "uuid": str(self._nvml.nvmlDeviceGetUUID(handle)),
            "name": str(self._nvml.nvmlDeviceGetName(handle)),
            "memory_bytes": int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total),
            "pci": str(self._nvml.nvmlDeviceGetPciInfo(handle).busId),
        }

    def reads_peer(self, index: int, peer: int) -> bool:
        """Ask for one direction of one pair."""
        handles = [self._nvml.nvmlDeviceGetHandleByIndex(at) for at in (index, peer)]
        status = self._nvml.nvmlDeviceGetP2PStatus(*handles, _P2P_READ)
        return bool(status == self._nvml.NVML_P2P_STATUS_OK)


def report(nvml: Nvml, sys_pci: Path = _SYS_PCI) -> GpuReport:
    """Return what NVML says; no driver is an empty report, a broken one a problem."""
    try:
        driver = nvml.open()
    except GpuAbsentError:
        return GpuReport()
    except Exception as error:  # noqa: BLE001  (whatever the driver's library raises is the answer)
        return GpuReport(problem=f"NVML cannot be opened: {error}")
    gpus = []
    try:
        for index in range(nvml.num_gpus()):
            found = nvml.gpu(index)
            gpus.append(
                Gpu(
                    index=index,
                    uuid=str(found["uuid"]),
                    name=str(found["name"]),
                    memory_bytes=int(found["memory_bytes"]),
                    numa_node=_numa_node(sys_pci, str(found["pci"])),
                )
            )
    except Exception as error:  # noqa: BLE001  (as above)
        return GpuReport(driver_version=driver, problem=f"GPU {len(gpus)} does not answer: {error}")
    return GpuReport(gpus=tuple(gpus), driver_version=driver, peer_gaps=_peer_gaps(nvml, len(gpus)))


def _peer_gaps(nvml: Nvml, num_gpus: int) -> tuple[tuple[int, int], ...] | None:
    """Return the pairs without direct access; None where the driver can't say."""
    pairs = itertools.combinations(range(num_gpus), 2)
    try:
        return tuple((a, b) for a, b in pairs if not nvml.reads_peer(a, b))
    except Exception:  # noqa: BLE001  (old drivers and virtual GPUs lack this call)
        return None


def _numa_node(sys_pci: Path, pci: str) -> int | None:
    """Return a PCI device's NUMA node; the kernel writes -1 where it does not know."""
    domain, _, rest = pci.lower().partition(":")
    try:
        node = int((sys_pci / f"{domain[-4:]}:{rest}" / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def main() -> None:
    """Print the report."""
    sys.stdout.buffer.write(msgspec.json.encode(report(NvmlLibrary())))


if __name__ == "__main__":
    main()
