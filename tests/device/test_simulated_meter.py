import pytest

from nodeserve.clock import ManualClock
from nodeserve.device.simulated_load import EngineLoad, SimulatedLoad
from nodeserve.device.simulated_meter import SCRIPT, SimulatedGpus
from nodeserve.errors import ConfigError, DeviceLostError

IDLE_MW, MAX_MW = 70_000, 700_000


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def node(tmp_path, clock):
    def make(script=None):
        return SimulatedGpus("8xh100-sxm", tmp_path, clock, began_s=1000.0, script=script)

    return make


def test_a_system_has_a_meter_for_each_gpu(node):
    meters = [device.meter for device in node().devices]
    assert [meter.meter for meter in meters] == [f"sim-{index}" for index in range(8)]
    assert {(m.kind, m.name, m.source, m.max_power_mw) for m in meters} == {
        ("simulated", "h100-sxm", "simulated", MAX_MW)
    }


def test_no_system_is_refused(tmp_path, clock):
    with pytest.raises(ConfigError):
        SimulatedGpus("8xabacus", tmp_path, clock, began_s=0.0, script=None)


def test_energy_is_idle_power_and_what_the_engine_was_busy(node, tmp_path, clock):
    gpu, idle = node().devices[:2]
    engine = EngineLoad(tmp_path, ("sim-0",))
    before = [device.read_now().counter_mj for device in (gpu, idle)]
    clock.advance(10)
    engine.add_busy(4.0)
    after = [device.read_now().counter_mj for device in (gpu, idle)]
    drawn = [b - a for a, b in zip(before, after, strict=True)]
    assert drawn == [10 * IDLE_MW + 4 * (MAX_MW - IDLE_MW), 10 * IDLE_MW]


def test_power_and_utilization_are_means_of_about_a_second(node, tmp_path, clock):
    gpu = node().devices[0]
    engine = EngineLoad(tmp_path, ("sim-0",))
    for _ in range(30):
        gpu.read_now()
        clock.advance(0.1)
        engine.add_busy(0.05)
    assert gpu.read_now().power_mw == pytest.approx((IDLE_MW + MAX_MW) / 2, rel=0.01)
    state = gpu.read_state()
    assert state.utilization == pytest.approx(0.5, rel=0.01)
    assert state.temperature_c == 52
    for _ in range(12):
        clock.advance(0.1)
        gpu.read_now()
    assert (gpu.read_now().power_mw, gpu.read_state().utilization) == (IDLE_MW, 0.0)


def test_a_counter_goes_on_for_the_next_monitor(node, tmp_path, clock):
    SimulatedLoad(tmp_path, "sim-0").add_busy(3.0)
    first = node().devices[0].read_now().counter_mj
    clock.advance(1)
    assert node().devices[0].read_now().counter_mj - first == IDLE_MW


def test_a_script_says_what_becomes_of_a_device(node, tmp_path, clock):
    (tmp_path / SCRIPT).write_text(
        "5 2 temperature_c=91 throttle=64 remap_pending=1 nvlinks_down=2 recovery_action=4\n"
        "7 2 lost=1\n9 2 lost=0\n"
    )
    gpu = node().devices[2]
    assert gpu.read_state().temperature_c == 32
    clock.advance(5)
    assert (gpu.read_state().temperature_c, gpu.read_now().throttle) == (91, 64)
    condition = gpu.read_condition()
    assert (condition.remap_pending, condition.nvlinks_down) == (True, (0, 1))
    assert condition.recovery_action == 4
    clock.advance(2)
    with pytest.raises(DeviceLostError, match="sim-2"):
        gpu.read_now()
    clock.advance(2)
    assert gpu.read_now().power_mw == IDLE_MW


def test_extra_power_and_resets_are_counted(node, tmp_path, clock):
    (tmp_path / SCRIPT).write_text("1 0 extra_w=100\n3 0 extra_w=0\n4 0 reset=1\n")
    gpu = node().devices[0]
    before = gpu.read_now().counter_mj
    clock.advance(3)
    assert gpu.read_now().counter_mj - before == 3 * IDLE_MW + 200_000
    clock.advance(1)
    assert gpu.read_now().counter_mj == 0
    clock.advance(1)
    assert gpu.read_now().counter_mj == IDLE_MW
    assert node().devices[0].read_now().counter_mj == IDLE_MW


def test_a_counter_that_is_hidden_is_none(node, tmp_path):
    (tmp_path / SCRIPT).write_text("0 * readable=0\n")
    assert node().devices[0].read_now().counter_mj is None


def test_xids_come_at_their_time_once_and_again_for_the_next_monitor(node, tmp_path, clock):
    script = tmp_path / "other"
    script.write_text("2 1 xid=94\n")
    gpus = node(str(script))
    assert gpus.take_xids() == []
    clock.advance(2.5)
    (seen,) = gpus.take_xids()
    assert (seen.meter, seen.number, seen.at_s) == ("sim-1", 94, 1002.0)
    with script.open("a") as file:
        file.write("2.2 1 xid=79\n")
    assert [xid.number for xid in gpus.take_xids()] == [79]
    assert gpus.take_xids() == []
    assert [xid.number for xid in node(str(script)).take_xids()] == [94, 79]


def test_a_script_that_cannot_be_read_changes_nothing(node, tmp_path, caplog):
    path = tmp_path / SCRIPT
    path.write_text("0 0 temperature_c=80\n")
    gpus = node()
    path.write_text("0 0 temperature=90\n")
    assert gpus.take_xids() == []
    assert gpus.devices[0].read_state().temperature_c == 80
    assert "line 1" in caplog.text
    path.unlink()
    gpus.take_xids()
    assert gpus.devices[0].read_state().temperature_c == 32
