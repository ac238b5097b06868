"""The driver's reasons for lower clocks, by name."""

from typing import Final

REASONS: Final = (
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
    (0x200, "board_limit"),
    (0x400, "reliability"),
)
"""Source: nvmlClocksEventReasons and the violation bits of nvml.h 13."""

_KNOWN: Final = sum(bit for bit, _ in REASONS)


def reason_names(bits: int) -> tuple[str, ...]:
    """Return the names of the reasons in ``bits``, lowest bit first; what is unknown as its bit."""
    names = [name for bit, name in REASONS if bits & bit]
    unknown = bits & ~_KNOWN
    while unknown:
        bit = unknown & -unknown
        names.append(f"{bit:#x}")
        unknown &= ~bit
    return tuple(names)
