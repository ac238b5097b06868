import pytest

from nodeserve.device.powercap import Powercap
from nodeserve.errors import DeviceLostError

RANGE_UJ = 262_143_328_850


@pytest.fixture
def tree(tmp_path):
    """Make zones of a powercap tree: ``tree("intel-rapl:0", "package-0", 5_000_000)``."""

    def make(zone, name, energy_uj, range_uj=RANGE_UJ):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        if energy_uj is not None:
            (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        return folder

    make.root = tmp_path
    return make


def test_packages_and_their_memory_are_metered(tree):
    tree("intel-rapl:0", "package-0", 5_000_999)
    tree("intel-rapl:1", "package-1", 7_000_000)
    tree("intel-rapl:0:0", "dram", 1_000_000)
    tree("intel-rapl:1:0", "dram", 2_000_000)
    powercap = Powercap(tree.root)
    read = {device.meter.meter: device.read_now().counter_mj for device in powercap.devices}
    assert read == {
        "cpu-dram-0": 1000,
        "cpu-dram-1": 2000,
        "cpu-package-0": 5000,
        "cpu-package-1": 7000,
    }
    meter = powercap.devices[2].meter
    assert (meter.kind, meter.source, meter.index) == ("cpu", "powercap", 2)
    assert meter.wraps_at_mj == 262_143_328
    assert meter.max_power_mw is None
    powercap.close()


def test_parts_of_a_package_and_what_is_around_it_are_not_counted_twice(tree):
    tree("intel-rapl:0", "package-0", 5_000_000)
    tree("intel-rapl:0:0", "core", 3_000_000)
    tree("intel-rapl:0:1", "uncore", 1_000_000)
    tree("intel-rapl:1", "psys", 9_000_000)
    tree("intel-rapl-mmio:0", "package-0", 6_000_000)
    (tree.root / "intel-rapl").mkdir()
    devices = Powercap(tree.root).devices
    assert [(device.meter.meter, device.read_now().counter_mj) for device in devices] == [
        ("cpu-package-0", 5000)
    ]


def test_dies_are_packages_of_their_own(tree):
    tree("intel-rapl:0", "package-0-die-0", 1_000)
    tree("intel-rapl:1", "package-0-die-1", 2_000)
    names = [device.meter.meter for device in Powercap(tree.root).devices]
    assert names == ["cpu-package-0-die-0", "cpu-package-0-die-1"]


def test_memory_of_no_package_is_not_known(tree):
    tree("intel-rapl:0:0", "dram", 1_000)
    assert Powercap(tree.root).devices == ()


def test_a_counter_that_may_not_be_read_is_no_meter_and_never_zero(tree):
    tree("intel-rapl:0", "package-0", None)
    tree("intel-rapl:1", "package-1", "")
    assert Powercap(tree.root).devices == ()


def test_a_machine_without_the_tree_has_no_meters(tmp_path):
    assert Powercap(tmp_path / "none").devices == ()


def test_a_counter_begins_anew_where_the_meter_says(tree):
    folder = tree("intel-rapl:0", "package-0", 262_143_328_000)
    (device,) = Powercap(tree.root).devices
    before = device.read_now().counter_mj
    (folder / "energy_uj").write_text("5000000\n")
    after = device.read_now().counter_mj
    assert (before, after) == (262_143_328, 5000)
    assert after + device.meter.wraps_at_mj - before == 5000


def test_a_counter_that_is_gone_is_lost(tree):
    folder = tree("intel-rapl:0", "package-0", 1_000_000)
    (device,) = Powercap(tree.root).devices
    (folder / "energy_uj").write_text("")
    with pytest.raises(DeviceLostError, match="cpu-package-0"):
        device.read_now()
