import pytest

from nodeserve.clock import ManualClock
from nodeserve.device.base import RESET_REQUIRED, Condition, Now, State, XidSeen
from nodeserve.errors import DeviceLostError
from nodeserve.monitor.call_marks import FIRST_REST_S, CallMarks
from nodeserve.monitor.desk import CONDITION_S, Desk
from nodeserve.wire.accounting import Meter
from tests.support.monitor_entry import PlainJudge

NAMES = ("g0", "g1")


class FakeGpu:
    def __init__(self, name):
        index = NAMES.index(name)
        self.meter = Meter(meter=name, kind="gpu", name="x", source="nvml-counter", index=index)
        self.pci = f"0000:0{index}:00"
        self.asked = []
        self.is_lost, self.code = False, 15
        self.condition = Condition()

    def read_now(self):
        return self._ask("now", Now(counter_mj=7, power_mw=100))

    def read_state(self):
        return self._ask("state", State(utilization=0.0))

    def read_condition(self):
        return self._ask("condition", self.condition)

    def _ask(self, what, answer):
        self.asked.append(what)
        if self.is_lost:
            raise DeviceLostError("gone", code=self.code)
        return answer


class FakeSources:
    def __init__(self, folder, now_s=0.0):
        self.gpus = NAMES
        self.marks = CallMarks(folder, NAMES, now_s)
        self.devices = {name: FakeGpu(name) for name in NAMES}
        self.xids = []

    @property
    def hung(self):
        return tuple(name for name in NAMES if name in self.marks.hung)

    def open_gpu(self, name):
        return self.devices[name]

    def open_others(self):
        return []

    def take_xids(self):
        found, self.xids = self.xids, []
        return found

    def close(self):
        self.marks.close()


@pytest.fixture
def sources(tmp_path):
    return FakeSources(tmp_path)


@pytest.fixture
def desk(sources):
    made = Desk(sources, PlainJudge(), ManualClock())
    for name in made.unopened():
        made.open(name, 0.0)
    return made


def run(desk, begin_s, seconds):
    """Read as the monitor does: ten times a second."""
    for tick in range(round(seconds * 10)):
        for watched in desk.watched:
            desk.read(watched, begin_s + tick / 10, is_second=tick % 10 == 0)


def signals(desk, now_s=0.0):
    return {(finding.meter, finding.signal) for finding in desk.report(now_s).findings}


def test_each_question_is_asked_as_often_as_it_is_worth(desk, sources):
    run(desk, 1.0, 2 * CONDITION_S)
    for device in sources.devices.values():
        asked = [device.asked.count(what) for what in ("now", "state", "condition")]
        assert asked == [200, 20, 2]


def test_no_tick_waits_for_the_condition_of_two(desk, sources):
    run(desk, 1.0, 1.0)
    for device in sources.devices.values():
        device.asked.clear()
    for tick in range(150):
        for watched in desk.watched:
            desk.read(watched, 2.0 + tick / 10, is_second=False)
        num_asked = sum("condition" in device.asked for device in sources.devices.values())
        assert num_asked < 2
        for device in sources.devices.values():
            device.asked.clear()


def test_a_lost_gpu_is_news_once_and_asked_each_second(desk, sources):
    run(desk, 1.0, 1.0)
    lost = sources.devices["g1"]
    lost.is_lost = True
    assert not desk.has_news
    desk.read(desk.watched[1], 2.0, is_second=False)
    assert desk.has_news
    assert signals(desk) == {("g1", "gpu_lost")}
    lost.asked.clear()
    run(desk, 2.1, 3.0)
    assert lost.asked == ["now"] * 3
    assert not desk.has_news
    lost.is_lost = False
    run(desk, 6.0, 0.1)
    assert not desk.report(6.1).samples[1].is_lost


def test_a_gpu_that_wants_a_reset_is_told_apart_from_one_that_is_gone(desk, sources):
    sources.devices["g1"].is_lost, sources.devices["g1"].code = True, RESET_REQUIRED
    run(desk, 1.0, 0.1)
    assert signals(desk) == {("g1", "gpu_reset_required")}


def test_an_nvlinks_error_that_the_kernel_calls_fatal_is_more_than_its_xid(desk):
    text = "NVLink: fatal error detected on link 11"
    desk.take_xids([XidSeen(number=74, source="kernel", text=text, pci="0000:01:00")], 2.0)
    assert signals(desk) == {("g1", "xid_74"), ("g1", "nvlink_fatal")}


def test_an_xid_is_judged_together_with_the_drivers_own_verdict(desk, sources):
    run(desk, 1.0, 1.0)
    sources.devices["g1"].condition = Condition(recovery_action=1)
    xid = XidSeen(number=48, source="kernel", text="", pci="0000:01:00", at_s=1.5)
    desk.take_xids([xid], 2.0)
    assert desk.has_news
    assert signals(desk) == {("g1", "xid_48"), ("g1", "recovery_1")}
    desk.take_xids([XidSeen(number=48, source="nvml", text="", meter="g1")], 2.1)
    assert not desk.has_news
    assert desk.report(2.2).samples[1].xids == 1


def test_what_is_looked_up_is_judged(desk, sources):
    sources.devices["g0"].condition = Condition(is_persistent=False)
    run(desk, 1.0, 0.1)
    assert signals(desk) == {("g0", "persistence_off")}


def test_a_hung_gpu_is_left_alone_until_it_has_rested(tmp_path):
    first = FakeSources(tmp_path)
    call = first.marks.asking("g1", 0.0)
    call.__enter__()
    sources = FakeSources(tmp_path, 2.0)
    desk = Desk(sources, PlainJudge(), ManualClock())
    assert desk.unopened() == ["g0"]
    desk.open("g0", 2.0)
    report = desk.report(2.0)
    assert (report.hung, len(report.samples)) == (("g1",), 1)
    assert signals(desk) == {("g1", "driver_hung")}
    assert not desk.wake_rested(3.0)
    assert desk.wake_rested(2.0 + FIRST_REST_S)
    assert desk.unopened() == ["g1"]
    desk.open("g1", 63.0)
    assert [meter.meter for meter in desk.meters] == ["g0", "g1"]
    assert desk.report(63.0).hung == ()
    run(desk, 63.0, CONDITION_S + 1)
    del call
    assert CallMarks(tmp_path, NAMES, 80.0).hung == set()


def test_energy_has_a_source_where_a_counter_is_read(desk):
    assert desk.report(0.0).energy_source is None
    run(desk, 1.0, 0.1)
    assert desk.report(1.1).energy_source == "nvml-counter"
    assert [reading.counter_mj for reading in desk.readings()] == [7, 7]


def test_what_an_operator_clears_is_forgotten(desk):
    desk.take_xids([XidSeen(number=48, source="nvml", text="", meter="g1")], 2.0)
    desk.report(2.0)
    desk.forget("g1")
    assert desk.has_news
    assert signals(desk) == set()
