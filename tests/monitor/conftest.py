import pytest

from tests.support.fake_nvml_library import FakeNvml
from tests.support.monitor_rig import MonitorRig


@pytest.fixture
def fake_nvml(tmp_path):
    """A driver of eight GPUs that are idle and well."""
    return FakeNvml(tmp_path / "nvml")


@pytest.fixture
def rig(tmp_path):
    """Make a rig for a monitor; it is not started yet."""
    rigs = []

    def make(**fields):
        (tmp_path / "run").mkdir(exist_ok=True)
        rigs.append(MonitorRig(tmp_path / "run", **fields))
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


@pytest.fixture
def monitor(rig, fake_nvml):
    """A monitor that reads the eight GPUs."""
    made = rig(
        gpu_uuids=tuple(fake_nvml.uuid(gpu) for gpu in range(8)),
        nvml_library=str(fake_nvml.library),
    )
    made.start()
    made.next_report()
    return made
