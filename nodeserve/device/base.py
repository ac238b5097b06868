"""What a device says of itself, whoever reads it: NVML, powercap or a simulation.

None is what a device does not say or nobody may ask; never zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nodeserve.wire.accounting import Meter

RESET_REQUIRED: Final = 16
"""The code of a DeviceLostError of a GPU that is there, and wants to be reset before it answers.
Source: NVML_ERROR_RESET_REQUIRED of nvml.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """What changes within a second, and costs next to nothing to ask.

    ``counter_mj`` is the device's own count of its energy. ``throttle`` are the driver's reasons
    for lower clocks, as bits; see ``device.throttle``.
    """

    counter_mj: int | None = None
    power_mw: int | None = None
    sm_clock_mhz: int | None = None
    throttle: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is asked about once a second. ``utilization`` is from 0 to 1."""

    utilization: float | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_clock_mhz: int | None = None
    power_limit_mw: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What is asked about every ten seconds, since asking is slow and nothing changes.

    Errors are counts since the driver was loaded. ``nvlinks_down`` are the numbers of links that
    are there and not up. ``is_fabric_complete`` is of NVSwitches, and None without any.
    ``recovery_action`` is what the driver itself says is to be done, 0 for nothing: NVML's field
    230.
    """

    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    nvlink_errors: int | None = None
    num_nvlinks: int | None = None
    nvlinks_down: tuple[int, ...] = ()
    pcie_replays: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_max_generation: int | None = None
    pcie_max_width: int | None = None
    slowdown_temperature_c: int | None = None
    is_sram_worn: bool | None = None
    is_fabric_complete: bool | None = None
    is_persistent: bool | None = None
    recovery_action: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class XidSeen:
    """An XID that a device's driver has raised. ``text`` is the driver's, as far as it says more.

    ``meter`` is the device's; None where only ``pci`` is known. ``source`` is who told: the same
    XID is told by several. ``at_s`` is when, where that is known better than by hearing of it.
    """

    number: int
    source: str
    text: str
    meter: str | None = None
    pci: str | None = None
    at_s: float | None = None


class Device(Protocol):
    """One device, asked by one thread.

    Any call may take for ever: a hung driver hangs who calls it. Raises DeviceLostError where the
    device is gone, and DeviceError where its driver is.
    """

    @property
    def meter(self) -> Meter:
        """What it is."""
        ...

    @property
    def pci(self) -> str | None:
        """Its PCI address, such as ``0000:19:00``; None where it has none."""
        ...

    def read_now(self) -> Now:
        """Ask for what changes at once."""
        ...

    def read_state(self) -> State:
        """Ask for what changes in seconds."""
        ...

    def read_condition(self) -> Condition:
        """Ask for what should never change."""
        ...


class DeviceSource(Protocol):
    """Some devices of one kind."""

    @property
    def devices(self) -> Sequence[Device]:
        """All of them, always the same."""
        ...

    def take_xids(self) -> list[XidSeen]:
        """Return what has happened since the last call, without waiting."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
