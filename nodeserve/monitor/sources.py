"""The devices of this node, whoever reads them, and which of them must not be asked at present."""

from pathlib import Path

from nodeserve.clock import Clock
from nodeserve.device.base import Device, XidSeen
from nodeserve.device.nvml import Nvml
from nodeserve.device.powercap import Powercap
from nodeserve.device.simulated_meter import SimulatedGpus
from nodeserve.monitor.call_marks import DRIVER, CallMarks
from nodeserve.wire.spawn import MonitorSpec


class Sources:
    """Opens the devices that a spec names.

    Attributes:
        marks: Who is asked, for a successor to know.
    """

    def __init__(self, spec: MonitorSpec, clock: Clock) -> None:
        """Open nothing yet. Raises ConfigError for a simulated system that is none."""
        self._spec = spec
        self._clock = clock
        runtime_dir = Path(spec.runtime_dir)
        self._nvml: Nvml | None = None
        self._simulated: SimulatedGpus | None = None
        if spec.simulate is not None:
            self._simulated = SimulatedGpus(
                spec.simulate, runtime_dir, clock, began_s=spec.run_began_s, script=spec.script
            )
        self._powercap = None if spec.powercap_root is None else Powercap(Path(spec.powercap_root))
        self.marks = CallMarks(runtime_dir, self.gpus, clock.now_s())

    @property
    def gpus(self) -> tuple[str, ...]:
        """The meters of all GPUs, by their numbers, whether or not they can be asked."""
        if self._simulated is not None:
            return tuple(device.meter.meter for device in self._simulated.devices)
        return self._spec.gpu_uuids

    @property
    def hung(self) -> tuple[str, ...]:
        """The GPUs that are not asked, for their driver did not answer."""
        marks = self.marks
        return tuple(name for name in self.gpus if DRIVER in marks.hung or name in marks.hung)

    def open_gpu(self, uuid: str) -> Device:
        """Return a GPU; the call may hang, and is marked.

        Raises:
            DeviceError: NVML cannot be opened.
        """
        index = self.gpus.index(uuid)
        if self._simulated is not None:
            return self._simulated.devices[index]
        if self._nvml is None:
            with self.marks.asking(DRIVER, self._clock.now_s()):
                self._nvml = Nvml(self._spec.nvml_library)
        with self.marks.asking(uuid, self._clock.now_s()):
            return self._nvml.open_gpu(uuid, index)

    def open_others(self) -> list[Device]:
        """Return the devices that cannot hang."""
        return [] if self._powercap is None else list(self._powercap.devices)

    def take_xids(self) -> list[XidSeen]:
        """Return the XIDs that the devices' drivers tell of."""
        if self._simulated is not None:
            return self._simulated.take_xids()
        return [] if self._nvml is None else self._nvml.take_xids()

    def close(self) -> None:
        """Let go of all of them; not after a hang."""
        for source in (self._nvml, self._simulated, self._powercap, self.marks):
            if source is not None:
                source.close()
