"""GPUs that are not there: they draw what their engines' load says, and suffer by a script."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nodeserve.clock import Clock
from nodeserve.device.base import Condition, Device, Now, State, XidSeen
from nodeserve.device.simulated_load import SimulatedLoad
from nodeserve.device.simulated_script import EVENT, Change, extra_mj, parse_script, present
from nodeserve.errors import ConfigError, DeviceLostError
from nodeserve.perf_model.roofline import gpu_spec, parse_system
from nodeserve.wire.accounting import Meter

_LOG: Final = logging.getLogger(__name__)

NAME: Final = "sim-{}"
"""Of a device's meter, by its number."""

SCRIPT: Final = "devices.script"
"""The file in the runtime directory that is read where no other is named."""

POWERS_MW: Final = {
    "a100-sxm": (55_000, 400_000),
    "h100-sxm": (70_000, 700_000),
    "h200-sxm": (75_000, 700_000),
    "b200-sxm": (140_000, 1_000_000),
}
"""Idle and highest power. The limits are the data sheets'; idle powers are about what such cards
show, and nobody's measurement here."""

_OTHER_MW: Final = (70_000, 700_000)
_IDLE_MHZ: Final = 345
_BUSY_MHZ: Final = 1755
_MEMORY_MHZ: Final = 2619
_COOL_C: Final = 32
_HOT_C: Final = 72
_NUM_NVLINKS: Final = 18
_MEAN_S: Final = 1.0
"""Power is a mean of so long, as a real card's."""

_FOREVER_S: Final = 86_400.0


class SimulatedGpu:
    """One of them. Its counter follows its load and the clock, whichever process asks."""

    pci: str | None = None

    def __init__(
        self, gpu: str, index: int, load: SimulatedLoad, clock: Clock, *, began_s: float
    ) -> None:
        self.changes: list[Change] = []
        self._idle_mw, self._max_mw = POWERS_MW.get(gpu, _OTHER_MW)
        self._memory_bytes = gpu_spec(gpu).memory_bytes
        self._load = load
        self._clock = clock
        self._began_s = began_s
        self._seen: deque[tuple[float, int, float]] = deque()
        self._meter = Meter(
            meter=NAME.format(index),
            kind="simulated",
            name=gpu,
            source="simulated",
            index=index,
            max_power_mw=self._max_mw,
        )

    @property
    def meter(self) -> Meter:
        """What it is."""
        return self._meter

    def read_now(self) -> Now:
        """Return what follows from load and script."""
        now_s = self._clock.now_s()
        keys = self._suffer(now_s)
        counted_mj = self._counted_mj(now_s)
        resets = int(keys.get("reset", 0))
        if resets > self._load.num_resets:
            self._load.reset(counted_mj)
        power_mw, share = self._mean(now_s, counted_mj)
        return Now(
            counter_mj=counted_mj - self._load.base_mj if keys.get("readable", 1) else None,
            power_mw=power_mw,
            sm_clock_mhz=_BUSY_MHZ if share else _IDLE_MHZ,
            throttle=int(keys.get("throttle", 0 if share else 1)),
        )

    def read_state(self) -> State:
        """Return what follows from load and script."""
        now_s = self._clock.now_s()
        keys = self._suffer(now_s)
        _, share = self._mean(now_s, self._counted_mj(now_s))
        warm_c = _COOL_C + round((_HOT_C - _COOL_C) * share)
        return State(
            utilization=round(share, 4),
            temperature_c=int(keys.get("temperature_c", warm_c)),
            memory_temperature_c=int(keys.get("memory_temperature_c", warm_c + 5)),
            memory_used_bytes=None,
            memory_total_bytes=self._memory_bytes,
            memory_clock_mhz=_MEMORY_MHZ,
            power_limit_mw=self._max_mw,
        )

    def read_condition(self) -> Condition:
        """Return what the script says; all is well by itself."""
        keys = self._suffer(self._clock.now_s())

        def number(key: str) -> int:
            return int(keys.get(key, 0))

        return Condition(
            ecc_corrected=number("ecc_corrected"),
            ecc_uncorrected=number("ecc_uncorrected"),
            remapped_rows=number("remapped_rows"),
            remap_pending=bool(number("remap_pending")),
            remap_failed=bool(number("remap_failed")),
            nvlink_errors=number("nvlink_errors"),
            num_nvlinks=_NUM_NVLINKS,
            nvlinks_down=tuple(range(number("nvlinks_down"))),
            pcie_replays=number("pcie_replays"),
            recovery_action=number("recovery_action"),
        )

    def _suffer(self, now_s: float) -> dict[str, float]:
        """Return what the script says of now; hang or be lost where it says so."""
        keys = dict(present(self.changes, now_s - self._began_s))
        while keys.get("hang"):
            time.sleep(_FOREVER_S)
        if keys.get("lost"):
            raise DeviceLostError(f"{self._meter.meter}: is lost, as the script says")
        return keys

    def _counted_mj(self, now_s: float) -> int:
        """Return all energy that it has drawn since the machine began."""
        work_mj = (self._max_mw - self._idle_mw) * self._load.busy_ns / 1e9
        scripted_mj = extra_mj(self.changes, now_s - self._began_s)
        return int(self._idle_mw * now_s + work_mj + scripted_mj)

    def _mean(self, now_s: float, counted_mj: int) -> tuple[int, float]:
        """Return power, and the share of time it was busy, over about the last second."""
        seen = self._seen
        if not seen or now_s > seen[-1][0]:
            seen.append((now_s, self._load.busy_ns, counted_mj))
        while len(seen) > 2 and now_s - seen[1][0] >= _MEAN_S:
            seen.popleft()
        first_s, busy_ns, mj = seen[0]
        if now_s <= first_s:
            return self._idle_mw, 0.0
        took_s = now_s - first_s
        share = min(1.0, (seen[-1][1] - busy_ns) / 1e9 / took_s)
        return round((counted_mj - mj) / took_s), share


class SimulatedGpus:
    """All of a simulated system."""

    def __init__(
        self, system: str, runtime_dir: Path, clock: Clock, *, began_s: float, script: str | None
    ) -> None:
        """Make those of ``8xh100-sxm``; raises ConfigError for a system that is none."""
        count, gpu = parse_system(system)
        self._loads = [SimulatedLoad(runtime_dir, NAME.format(index)) for index in range(count)]
        self._gpus = [
            SimulatedGpu(gpu, index, load, clock, began_s=began_s)
            for index, load in enumerate(self._loads)
        ]
        self._clock = clock
        self._began_s = began_s
        self._script = Script(Path(script) if script else runtime_dir / SCRIPT, count)
        self._num_told = [0] * count
        self._take_script()

    @property
    def devices(self) -> Sequence[Device]:
        """All of them."""
        return self._gpus

    def take_xids(self) -> list[XidSeen]:
        """Return the XIDs of the script whose time has come, since the node began."""
        self._take_script()
        elapsed_s = self._clock.now_s() - self._began_s
        seen: list[XidSeen] = []
        for index, gpu in enumerate(self._gpus):
            events = [c for c in gpu.changes if c.key == EVENT and c.at_s <= elapsed_s]
            meter = gpu.meter.meter
            seen += [self._xid(meter, event) for event in events[self._num_told[index] :]]
            self._num_told[index] = len(events)
        return seen

    def _xid(self, meter: str, event: Change) -> XidSeen:
        text, at_s = "as the script says", self._began_s + event.at_s
        return XidSeen(number=int(event.value), source="script", text=text, meter=meter, at_s=at_s)

    def close(self) -> None:
        """Let go of the files."""
        for load in self._loads:
            load.close()

    def _take_script(self) -> None:
        changes = self._script.read()
        if changes is not None:
            for gpu, of_one in zip(self._gpus, changes, strict=True):
                gpu.changes = of_one


class Script:
    """A script's file, which may come, change and go while it is in use."""

    def __init__(self, path: Path, num_devices: int) -> None:
        self._path = path
        self._num_devices = num_devices
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> list[list[Change]] | None:
        """Return the changes if the file is another than at the last call, else None."""
        try:
            found = self._path.stat()
            identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            identity = (0, 0, 0)
        if identity == self._seen or (self._seen is None and identity == (0, 0, 0)):
            return None
        self._seen = identity
        try:
            text = "" if identity == (0, 0, 0) else self._path.read_text(encoding="utf-8")
            return parse_script(text, self._num_devices)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            _LOG.warning("script_refused path=%s cause=%s", self._path, error)
            return None
