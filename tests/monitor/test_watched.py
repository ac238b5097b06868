import pytest

from nodeserve.device.base import Condition, Now, State
from nodeserve.errors import DeviceError, DeviceLostError
from nodeserve.monitor.watched import Watched
from nodeserve.wire.accounting import Meter


class FakeDevice:
    """Says what it is told to; an exception is raised."""

    pci = None

    def __init__(self, source="nvml-counter", **fields):
        self.meter = Meter(meter="g", kind="gpu", name="H100", source=source, **fields)
        self.now, self.state, self.condition = Now(), State(), Condition()

    def read_now(self):
        return self._answer(self.now)

    def read_state(self):
        return self._answer(self.state)

    def read_condition(self):
        return self._answer(self.condition)

    def _answer(self, answer):
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_reading_is_what_the_device_says():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    device.now = Now(counter_mj=5, power_mw=120, sm_clock_mhz=1980)
    watched.read_now(1.0)
    reading = watched.reading()
    assert (reading.meter, reading.counter_mj, reading.power_mw) == ("g", 5, 120)
    assert reading.idle_mw is None


def test_what_was_never_read_is_none():
    reading = Watched(FakeDevice(), 0.0).reading()
    assert (reading.counter_mj, reading.power_mw, reading.idle_mw) == (None, None, None)


def test_reasons_are_all_of_those_of_the_second():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    for at_s, throttle in ((0.1, 0x4), (0.2, 0x40), (0.3, 0x4)):
        device.now = Now(throttle=throttle)
        watched.read_now(at_s)
    assert watched.sample(0.5, xids=2).throttle_reasons == ("sw_power_cap", "hw_thermal_slowdown")
    watched.begin_second()
    assert watched.sample(0.6, xids=2).throttle_reasons == ("sw_power_cap",)
    sample = watched.sample(1.3, xids=2)
    assert (sample.age_s, sample.xids) == (1.0, 2)


def test_a_lost_device_says_nothing_until_it_is_back():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    device.now, device.state = Now(counter_mj=5, power_mw=120), State(temperature_c=40)
    watched.read_now(1.0)
    watched.read_state(1.0)
    device.now = DeviceLostError("gone")
    watched.read_now(2.0)
    sample = watched.sample(3.0, xids=0)
    assert sample.is_lost
    assert (sample.energy_mj, sample.power_mw, sample.temperature_c) == (None, None, None)
    assert sample.age_s == 2.0
    assert watched.reading().counter_mj is None
    device.now = Now(counter_mj=0)
    watched.read_now(4.0)
    assert (watched.is_lost, watched.reading().counter_mj) == (False, 0)


@pytest.mark.parametrize("what", ["state", "condition"])
def test_a_device_can_be_lost_at_any_question(what):
    device = FakeDevice()
    watched = Watched(device, 0.0)
    setattr(device, what, DeviceLostError("gone"))
    watched.read_condition() if what == "condition" else watched.read_state(1.0)
    assert watched.is_lost


def test_a_driver_that_is_gone_is_not_its_device_s_matter():
    device = FakeDevice()
    device.now = DeviceError("no driver")
    with pytest.raises(DeviceError):
        Watched(device, 0.0).read_now(1.0)


def test_power_is_integrated_where_nothing_counts():
    device = FakeDevice(source="nvml-power")
    watched = Watched(device, 0.0)
    assert watched.reading().counter_mj is None
    for tick, power_mw in enumerate((100_000, 100_000, 200_000, 200_000)):
        device.now = Now(power_mw=power_mw)
        watched.read_now(tick / 10)
    assert watched.reading().counter_mj == 10_000 + 15_000 + 20_000


def test_power_is_not_integrated_over_a_time_that_nobody_saw():
    device = FakeDevice(source="nvml-power")
    watched = Watched(device, 0.0)
    device.now = Now(power_mw=100_000)
    watched.read_now(0.0)
    watched.read_now(5.0)
    device.now = Now()
    watched.read_now(5.1)
    device.now = Now(power_mw=100_000)
    watched.read_now(5.2)
    assert watched.reading().counter_mj == 0
    watched.read_now(5.3)
    assert watched.reading().counter_mj == pytest.approx(10_000, abs=1)


def test_power_follows_from_a_counter_over_its_wrap():
    device = FakeDevice(source="powercap", wraps_at_mj=1_000_000)
    watched = Watched(device, 0.0)
    powers = []
    for at_s, counter_mj in ((0, 900_000), (1, 950_000), (2, 20_000), (3, 90_000)):
        device.now = Now(counter_mj=counter_mj)
        watched.read_now(at_s)
        watched.read_state(at_s)
        powers.append(watched.reading().power_mw)
    assert powers == [None, 50_000, 70_000, 70_000]


def test_power_is_unknown_where_a_counter_begins_anew():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    for at_s, counter_mj in ((0, 900_000), (1, 100)):
        device.now = Now(counter_mj=counter_mj)
        watched.read_now(at_s)
        watched.read_state(at_s)
    assert watched.reading().power_mw is None


def test_idle_power_is_learned_while_the_device_has_nothing_to_do():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    device.now = Now(power_mw=70_000, sm_clock_mhz=345)
    device.state = State(utilization=0.0)
    for tick in range(60):
        if tick % 10 == 0:
            watched.read_state(tick / 10)
        watched.read_now(tick / 10)
    assert watched.reading().idle_mw == 70_000
    device.now = Now(power_mw=400_000, sm_clock_mhz=1980)
    watched.read_now(6.0)
    assert watched.sample(6.0, xids=0).idle_mw == 70_000


def test_the_condition_is_in_the_sample():
    device = FakeDevice()
    watched = Watched(device, 0.0)
    device.condition = Condition(
        ecc_uncorrected=3, num_nvlinks=18, nvlinks_down=(1, 2), recovery_action=4
    )
    watched.read_condition()
    sample = watched.sample(0.0, xids=0)
    assert (sample.ecc_uncorrected, sample.recovery_action) == (3, 4)
    assert (sample.num_nvlinks, sample.num_nvlinks_down) == (18, 2)
    assert Watched(FakeDevice(), 0.0).sample(0.0, xids=0).num_nvlinks_down is None
