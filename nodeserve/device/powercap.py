"""The energy of CPU packages and their memory, by the kernel's powercap tree (RAPL).

Intel, and AMD since Linux 5.8. The counters are root's alone since CVE-2020-8694, unless the
operator says otherwise; what may not be read does not exist here.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeserve.device.base import Condition, Device, Now, State, XidSeen
from nodeserve.errors import DeviceLostError
from nodeserve.wire.accounting import Meter

_LOG: Final = logging.getLogger(__name__)

ROOT: Final = Path("/sys/class/powercap")

_PACKAGE: Final = re.compile(r"package-\d+(?:-die-\d+)?")
_UJ_PER_MJ: Final = 1000
_NUMBER_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of the tree: ``name`` is that of its meter, such as ``cpu-package-0``."""

    name: str
    path: Path
    wraps_at_mj: int


class PowercapMeter:
    """The counter of one zone; it begins anew at ``meter.wraps_at_mj``, about every ten minutes.

    Nothing says how much a package can draw: its limits are means, which turbo may pass.
    """

    pci: str | None = None

    def __init__(self, zone: Zone, index: int) -> None:
        """Open it; raises OSError where it may not be read."""
        self._fd = os.open(zone.path / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        self._name = zone.name
        try:
            self._counter_mj()
        except BaseException:
            os.close(self._fd)
            raise
        self._meter = Meter(
            meter=zone.name,
            kind="cpu",
            name=zone.name,
            source="powercap",
            index=index,
            wraps_at_mj=zone.wraps_at_mj,
        )

    @property
    def meter(self) -> Meter:
        """What it is."""
        return self._meter

    def read_now(self) -> Now:
        """Read the counter. The tree says no power."""
        try:
            return Now(counter_mj=self._counter_mj())
        except (OSError, ValueError) as error:
            raise DeviceLostError(f"{self._name}: its counter cannot be read: {error}") from error

    def read_state(self) -> State:
        """Return nothing: there is no more to read."""
        return State()

    def read_condition(self) -> Condition:
        """Return nothing: there is no more to read."""
        return Condition()

    def close(self) -> None:
        """Close the counter."""
        os.close(self._fd)

    def _counter_mj(self) -> int:
        return int(os.pread(self._fd, _NUMBER_BYTES, 0)) // _UJ_PER_MJ


class Powercap:
    """All packages, and their memory where it is counted apart."""

    def __init__(self, root: Path = ROOT) -> None:
        self._meters: list[PowercapMeter] = []
        for zone in find_zones(root):
            try:
                self._meters.append(PowercapMeter(zone, len(self._meters)))
            except (OSError, ValueError) as error:
                _LOG.info("powercap_not_read zone=%s cause=%s", zone.name, error)

    @property
    def devices(self) -> tuple[Device, ...]:
        """What can be read."""
        return tuple(self._meters)

    def take_xids(self) -> list[XidSeen]:
        """Return nothing: CPUs have none."""
        return []

    def close(self) -> None:
        """Close all counters."""
        for meter in self._meters:
            meter.close()


def find_zones(root: Path) -> list[Zone]:
    """Return the zones that are no part of another one here.

    ``core`` and ``uncore`` are within their package and ``psys`` is around it, so they would count
    twice; so would a package that is there again behind another interface (``intel-rapl-mmio``).
    ``dram`` is not within its package on servers.
    """
    found: dict[str, Zone] = {}
    for path in _zone_paths(root):
        name = _meter_name(path, root)
        if name is None or name in found:
            continue
        range_uj = _number(path / "max_energy_range_uj")
        if range_uj is None:
            continue
        found[name] = Zone(name, path, range_uj // _UJ_PER_MJ)
    return sorted(found.values(), key=lambda zone: zone.name)


def _zone_paths(root: Path) -> Iterator[Path]:
    """Yield zones, those of the usual interface first; zones have a colon, interfaces none."""
    try:
        names = sorted(path.name for path in root.iterdir() if ":" in path.name)
    except OSError:
        return
    for name in sorted(names, key=lambda name: not name.startswith("intel-rapl:")):
        yield root / name


def _meter_name(path: Path, root: Path) -> str | None:
    """Return what a zone's meter is called; None for a zone that is a part of another."""
    name = _text(path / "name")
    if name is None:
        return None
    if _PACKAGE.fullmatch(name):
        return f"cpu-{name}"
    if name == "dram":
        package = _text(root / path.name.rpartition(":")[0] / "name")
        if package is not None and _PACKAGE.fullmatch(package):
            return f"cpu-dram-{package.removeprefix('package-')}"
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
