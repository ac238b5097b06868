import pytest

from nodeserve.clock import ManualClock
from nodeserve.errors import ConfigError, DeviceError
from nodeserve.monitor.call_marks import DRIVER
from nodeserve.monitor.sources import Sources
from nodeserve.wire.spawn import MonitorSpec


@pytest.fixture
def sources(tmp_path):
    clock = ManualClock(100.0)

    def make(**fields):
        spec = MonitorSpec(
            generation=1,
            runtime_dir=str(tmp_path),
            control_address="",
            run_began_s=0.0,
            **{"powercap_root": None, **fields},
        )
        return Sources(spec, clock)

    return make


def test_simulated_gpus_stand_in_for_real_ones(sources):
    found = sources(simulate="2xh100-sxm", gpu_uuids=("GPU-1",))
    assert found.gpus == ("sim-0", "sim-1")
    assert found.open_gpu("sim-1").meter.index == 1
    assert found.take_xids() == []
    found.close()


def test_a_system_that_is_none_is_refused(sources):
    with pytest.raises(ConfigError):
        sources(simulate="abacus")


def test_nvml_is_loaded_with_the_first_gpu(sources, tmp_path):
    found = sources(gpu_uuids=("GPU-1",), nvml_library=str(tmp_path / "none"))
    assert found.take_xids() == []
    with pytest.raises(DeviceError, match="NVML cannot be opened"):
        found.open_gpu("GPU-1")
    assert sources().marks.hung == set()


def test_packages_are_others_and_only_where_they_are_wanted(sources, tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        (zone / name).write_text(text)
    assert sources().open_others() == []
    (package,) = sources(powercap_root=str(tmp_path)).open_others()
    assert package.meter.meter == "cpu-package-0"


def test_a_driver_that_hung_hangs_all_gpus(sources):
    found = sources(gpu_uuids=("GPU-1", "GPU-2"))
    assert found.hung == ()
    found.marks.hung.add("GPU-2")
    assert found.hung == ("GPU-2",)
    found.marks.hung.add(DRIVER)
    assert found.hung == ("GPU-1", "GPU-2")
