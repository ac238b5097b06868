"""What the monitor tells the supervisor of the node's devices, about once a second.

None stands for what a device does not say, or cannot be asked; never for zero.
"""

from typing import Final

import msgspec

SEVERITIES: Final = ("ok", "warn", "error", "fatal")
ACTIONS: Final = ("none", "warn", "drain", "restart", "fence", "fence_node")
"""What a finding asks for, from the mildest: say it, drain the GPU's worker, restart it, take the
GPU out of service, take all of them out."""


class DeviceSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device as last seen. ``age_s`` is how long ago.

    ``throttle_reasons`` are all of the last second. ``is_lost``: its driver does not reach it.
    ``xids`` are those of this run of the node. ``recovery_action`` is NVML's field 230, 0 for
    none.
    """

    meter: str
    index: int
    name: str
    age_s: float
    power_mw: int | None = None
    power_limit_mw: int | None = None
    idle_mw: int | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    nvlink_errors: int | None = None
    pcie_replays: int | None = None
    xids: int = 0
    is_lost: bool = False
    slowdown_temperature_c: int | None = None
    num_nvlinks: int | None = None
    num_nvlinks_down: int | None = None
    recovery_action: int | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is wrong with a device, and since when.

    ``signal`` names the row of the health table, ``detail`` has the numbers. ``provenance`` is
    why the row asks for ``action``. An empty ``meter`` means the whole node.
    """

    meter: str
    signal: str
    severity: str
    action: str
    detail: str
    provenance: str
    since_unix_s: float


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All devices and all findings. ``energy_source`` is None where nothing can be measured.

    ``hung`` are devices whose driver does not answer.
    """

    samples: tuple[DeviceSample, ...] = ()
    findings: tuple[Finding, ...] = ()
    energy_source: str | None = None
    hung: tuple[str, ...] = ()
