"""The monitor as a process, on the fake driver."""

import os
import signal
import socket
import time

import msgspec
import pytest

from nodeserve.device.base import Condition, State
from nodeserve.device.health_table import read_table
from nodeserve.device.throttle import REASONS
from nodeserve.errors import ConfigError
from nodeserve.monitor.looked_up import look
from nodeserve.monitor.main import judge_by_table
from nodeserve.wire import control
from nodeserve.wire.accounting import LedgerHello, MetersHello
from nodeserve.wire.device_control import HealthClear, MonitorHeartbeat, MonitorReady
from nodeserve.wire.spawn import MonitorSpec

SILENT_S = 1.0


def counters(read):
    return {reading.meter: reading.counter_mj for reading in read.readings}


def test_it_says_that_it_is_ready_beats_and_ends_when_told(monitor):
    (ready,) = [said for _, said in monitor.said if isinstance(said, MonitorReady)]
    assert (ready.generation, ready.pid) == (1, monitor.process.pid)
    beats = [said for _, said in monitor.said if isinstance(said, MonitorHeartbeat)]
    assert beats
    monitor.tell(control.SayAgain())
    monitor.wait_for(lambda: sum(isinstance(said, MonitorReady) for _, said in monitor.said) == 2)
    assert monitor.end(signal.SIGTERM) == 0


def test_the_ledger_hears_of_all_meters_and_then_what_they_show(monitor, fake_nvml):
    hello = next(told for _, told in monitor.told if isinstance(told, MetersHello))
    assert monitor.told[0][1] is hello
    assert [meter.meter for meter in hello.meters] == [fake_nvml.uuid(gpu) for gpu in range(8)]
    assert {meter.source for meter in hello.meters} == {"nvml-counter"}
    first, second = monitor.next_read(), monitor.next_read()
    took_s = second.at_s - first.at_s
    assert 0.5 < took_s < 3
    assert second.at_unix_s - first.at_unix_s == pytest.approx(took_s, abs=0.1)
    before, after = counters(first), counters(second)
    for meter in before:
        assert after[meter] - before[meter] == pytest.approx(120_000 * took_s, rel=0.5)
    assert {reading.power_mw for reading in second.readings} == {120_000}


def test_a_ledger_that_begins_anew_is_told_of_the_meters_again(monitor):
    def hellos():
        return [told for _, told in monitor.told if isinstance(told, MetersHello)]

    monitor.next_read()
    monitor.answer(LedgerHello(generation=9))
    monitor.wait_for(lambda: len(hellos()) == 2)
    assert hellos()[0] == hellos()[1]


def test_a_counter_that_was_reset_is_read_as_it_is(monitor, fake_nvml):
    uuid = fake_nvml.uuid(3)
    before = counters(monitor.next_read())[uuid]
    fake_nvml.set(3, reset=1)
    monitor.wait_for(lambda: counters(monitor.reads[-1])[uuid] < before)


def test_an_xid_of_the_drivers_events_is_reported_at_once(monitor, fake_nvml):
    monitor.next_report()
    fake_nvml.set(5, recovery=1)
    fake_nvml.xid(5, 94)
    begun_s = time.monotonic()
    wanted = {(fake_nvml.uuid(5), "xid_94"), (fake_nvml.uuid(5), "recovery_1")}
    monitor.wait_for(lambda: wanted <= monitor.findings())
    assert time.monotonic() - begun_s < 1.0
    assert monitor.sample(fake_nvml.uuid(5)).xids == 1


@pytest.fixture
def kernel(rig, fake_nvml):
    """A monitor that also reads the kernel's messages; what is sent to it is one."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    made = rig(
        gpu_uuids=tuple(fake_nvml.uuid(gpu) for gpu in range(8)),
        nvml_library=str(fake_nvml.library),
    )
    with theirs, ours:
        made.kmsg_fd = ours.fileno()
        made.start()
        made.next_report()
        yield made, theirs


def message(text):
    return f"3,1,{int(time.monotonic() * 1e6)},-;{text}\n".encode()


def test_an_xid_of_the_kernels_is_the_same_that_the_driver_tells_of(kernel, fake_nvml):
    monitor, write = kernel
    write.send(message("NVRM: Xid (PCI:0000:49:00): 79, pid=1, GPU has fallen off the bus."))
    write.send(message("NVRM: GPU 0000:49:00.0: GPU has fallen off the bus."))
    write.send(message("NVRM: Xid (PCI:0000:ff:00): 79, of a GPU that is not ours"))
    begun_s = time.monotonic()
    monitor.wait_for(lambda: (fake_nvml.uuid(3), "xid_79") in monitor.findings())
    assert time.monotonic() - begun_s < 1.0
    fake_nvml.xid(3, 79)
    fake_nvml.xid(3, 48)
    monitor.wait_for(lambda: (fake_nvml.uuid(3), "xid_48") in monitor.findings())
    assert monitor.sample(fake_nvml.uuid(3)).xids == 2
    assert {meter for meter, _ in monitor.findings()} == {fake_nvml.uuid(3)}


def test_the_next_monitor_still_knows_the_xids_of_this_run(kernel, fake_nvml):
    monitor, write = kernel
    monitor.end(signal.SIGKILL)
    write.send(message("NVRM: Xid (PCI:0000:19:00): 48, pid=1"))
    monitor.start()
    monitor.wait_for(lambda: (fake_nvml.uuid(0), "xid_48") in monitor.findings())


def test_a_lost_gpu_is_reported_and_the_others_are_read_on(monitor, fake_nvml):
    fake_nvml.set(6, lost=1)
    lost = fake_nvml.uuid(6)
    monitor.wait_for(lambda: (lost, "gpu_lost") in monitor.findings())
    sample = monitor.sample(lost)
    assert sample.is_lost
    assert (sample.power_mw, sample.energy_mj, sample.temperature_c) == (None, None, None)
    read = counters(monitor.next_read())
    assert [meter for meter, counter in read.items() if counter is None] == [lost]
    fake_nvml.set(6, lost=0)
    monitor.wait_for(lambda: not monitor.sample(lost).is_lost)
    assert counters(monitor.next_read())[lost] is not None


def test_a_gpu_that_is_lost_before_the_monitor_starts_is_reported(rig, fake_nvml):
    fake_nvml.take_away(7)
    made = rig(
        gpu_uuids=(fake_nvml.uuid(0), fake_nvml.uuid(7)), nvml_library=str(fake_nvml.library)
    )
    made.start()
    made.next_report()
    assert made.findings() == {(fake_nvml.uuid(7), "gpu_lost")}
    assert not made.sample(fake_nvml.uuid(0)).is_lost


def test_what_an_operator_clears_is_forgotten(monitor, fake_nvml):
    fake_nvml.xid(2, 48)
    monitor.wait_for(lambda: (fake_nvml.uuid(2), "xid_48") in monitor.findings())
    monitor.tell(HealthClear(meter=fake_nvml.uuid(2)))
    monitor.wait_for(lambda: not monitor.findings())


def test_a_driver_that_hangs_makes_it_silent_and_its_successor_reads_the_others(monitor, fake_nvml):
    fake_nvml.set(4, hang=1)
    monitor.hear(1.0)
    said = len(monitor.said)
    monitor.hear(SILENT_S)
    assert len(monitor.said) == said, "who waits for a driver says nothing"
    os.kill(monitor.process.pid, signal.SIGTERM)
    monitor.hear(0.2)
    assert monitor.process.poll() is None, "nor does it hear"
    assert monitor.end(signal.SIGKILL) == -signal.SIGKILL

    monitor.start()
    report = monitor.next_report()
    hung = fake_nvml.uuid(4)
    assert report.hung == (hung,)
    assert monitor.findings() == {(hung, "driver_hung")}
    assert [sample.meter for sample in report.samples] == [
        fake_nvml.uuid(gpu) for gpu in range(8) if gpu != 4
    ]
    assert hung not in counters(monitor.next_read())


def test_a_monitor_that_is_killed_while_all_is_well_blames_nobody(monitor):
    monitor.end(signal.SIGKILL)
    monitor.start()
    report = monitor.next_report()
    assert (report.hung, report.findings, len(report.samples)) == ((), (), 8)


def test_a_driver_that_hangs_while_it_is_opened_says_before_how_long_that_may_take(rig, fake_nvml):
    fake_nvml.set(1, hang=1)
    made = rig(
        gpu_uuids=tuple(fake_nvml.uuid(gpu) for gpu in range(3)),
        nvml_library=str(fake_nvml.library),
    )
    made.start()

    def beats():
        return [said.next_s for _, said in made.said if isinstance(said, MonitorHeartbeat)]

    made.wait_for(lambda: len(beats()) == 2)
    made.hear(SILENT_S + 0.2)
    assert beats() == [10.0, 10.0]
    assert made.reports == []
    made.end(signal.SIGKILL)
    made.start()
    assert made.next_report().hung == (fake_nvml.uuid(1),)


def test_without_a_ledger_and_a_supervisor_that_listens_nothing_waits(rig, fake_nvml):
    made = rig(
        gpu_uuids=(fake_nvml.uuid(0),), nvml_library=str(fake_nvml.library), ledger_address=None
    )
    made.start()
    first = made.next_report().samples[0].energy_mj
    assert made.next_report().samples[0].energy_mj > first
    assert made.told == []


def test_a_node_without_anything_to_read_knows_no_energy(rig, tmp_path):
    made = rig(powercap_root=str(tmp_path / "none"))
    made.start()
    report = made.next_report()
    assert (report.samples, report.energy_source) == ((), None)
    assert made.next_read().readings == ()


def test_cpu_packages_are_metered_and_their_power_follows_from_the_counter(rig, tmp_path):
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (
        ("name", "package-0"),
        ("energy_uj", "5000000"),
        ("max_energy_range_uj", "262143328850"),
    ):
        (zone / name).write_text(text)
    made = rig(powercap_root=str(zone.parent))
    made.start()
    report = made.next_report()
    assert (report.energy_source, report.samples[0].name) == ("powercap", "cpu-package-0")
    assert counters(made.next_read()) == {"cpu-package-0": 5000}
    (zone / "energy_uj").write_text("95000000")
    made.wait_for(lambda: counters(made.reads[-1]) == {"cpu-package-0": 95_000})
    made.wait_for(lambda: made.sample("cpu-package-0").power_mw)
    assert 30_000 < made.sample("cpu-package-0").power_mw <= 100_000


def test_a_simulated_node_has_a_meter_for_each_gpu(rig):
    made = rig(simulate="8xh100-sxm")
    made.start()
    report = made.next_report()
    assert [sample.meter for sample in report.samples] == [f"sim-{gpu}" for gpu in range(8)]
    assert report.energy_source == "simulated"
    (made.folder / "devices.script").write_text("0 3 xid=48\n0 5 lost=1\n")
    wanted = {("sim-3", "xid_48"), ("sim-5", "gpu_lost")}
    made.wait_for(lambda: made.findings() == wanted)


def test_health_is_judged_by_the_shipped_table_and_an_operators_actions(tmp_path):
    spec = MonitorSpec(
        generation=1,
        runtime_dir=str(tmp_path),
        control_address="",
        run_began_s=0.0,
        health_overrides={"xid_48": "warn"},
    )
    judge = judge_by_table(spec, 1000.0)
    judge.xid("g", 79, detail="gone", now_s=5.0)
    judge.xid("g", 48, detail="", now_s=6.0)
    found = {f.signal: (f.action, f.since_unix_s) for f in judge.findings(now_s=7.0)}
    assert found == {"xid_79": ("fence", 1005.0), "xid_48": ("warn", 1006.0)}
    with pytest.raises(ConfigError, match="xid_47x"):
        judge_by_table(msgspec.structs.replace(spec, health_overrides={"xid_47x": "warn"}), 0.0)


def test_every_signal_that_is_looked_up_has_a_row():
    table = read_table()
    condition = Condition(
        num_nvlinks=18,
        is_sram_worn=False,
        is_fabric_complete=True,
        is_persistent=True,
        slowdown_temperature_c=89,
        pcie_generation=5,
        pcie_width=16,
        pcie_max_generation=5,
        pcie_max_width=16,
    )
    looked_up = {signal for signal, _ in look(condition, State(temperature_c=1, utilization=1.0))}
    assert {*looked_up, "nvlink_fatal", "gpu_reset_required"} <= set(table)
    assert {row.reason for row in table.values() if row.reason} <= {name for _, name in REASONS}
