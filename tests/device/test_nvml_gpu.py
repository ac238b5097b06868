import pytest

from nodeserve.device.base import Condition, Now, State
from nodeserve.errors import DeviceLostError

POWER_CAP, HW_THERMAL = 0x4, 0x40


@pytest.fixture
def gpu(nvml, fake_nvml):
    return nvml.open_gpu(fake_nvml.uuid(2), 2)


def test_a_gpu_says_who_it_is(gpu, fake_nvml):
    meter = gpu.meter
    assert (meter.meter, meter.index, meter.kind) == (fake_nvml.uuid(2), 2, "gpu")
    assert (meter.name, meter.source) == ("NVIDIA H100 80GB HBM3", "nvml-counter")
    assert meter.max_power_mw == 700_000
    assert gpu.pci == "0000:39:00"


def test_energy_is_the_integral_of_power_in_whole_millijoules(gpu, fake_nvml):
    before = gpu.read_now().counter_mj
    fake_nvml.at(10)
    fake_nvml.set(2, power_w=640)
    between = gpu.read_now()
    fake_nvml.at(15)
    assert between.counter_mj - before == 1_200_000
    assert between.power_mw == 640_000
    assert gpu.read_now().counter_mj - between.counter_mj == 3_200_000


def test_a_counter_that_is_reset_reads_less_than_before(gpu, fake_nvml):
    fake_nvml.at(10)
    assert gpu.read_now().counter_mj == 1_200_000
    fake_nvml.set(2, reset=1)
    assert gpu.read_now().counter_mj == 0
    fake_nvml.at(11)
    assert gpu.read_now().counter_mj == 120_000


def test_a_counter_moves_only_as_often_as_the_card_updates_it(gpu, fake_nvml):
    fake_nvml.set(2, update_ms=125)
    seen = []
    for tick in range(5):
        fake_nvml.at(10 + tick * 0.05)
        seen.append(gpu.read_now().counter_mj)
    assert seen == [1_200_000, 1_200_000, 1_200_000, 1_215_000, 1_215_000]


def test_reasons_and_clocks_are_read(gpu, fake_nvml):
    fake_nvml.set(2, power_w=900, utilization=97, throttle=HW_THERMAL, sm_mhz=1200)
    now = gpu.read_now()
    assert (now.power_mw, now.sm_clock_mhz) == (700_000, 1200)
    assert now.throttle == POWER_CAP | HW_THERMAL


def test_the_state_is_read(gpu, fake_nvml):
    fake_nvml.set(2, utilization=40, temperature_c=71, memory_temperature_c=80)
    fake_nvml.set(2, memory_used_mb=1000)
    assert gpu.read_state() == State(
        utilization=0.4,
        temperature_c=71,
        memory_temperature_c=80,
        memory_used_bytes=1000 << 20,
        memory_total_bytes=85_520_809_984,
        memory_clock_mhz=2619,
        power_limit_mw=700_000,
    )


def test_the_condition_of_a_healthy_gpu_is_zeros(gpu):
    assert gpu.read_condition() == Condition(
        ecc_corrected=0,
        ecc_uncorrected=0,
        remapped_rows=0,
        remap_pending=False,
        remap_failed=False,
        nvlink_errors=0,
        num_nvlinks=18,
        pcie_replays=0,
        pcie_generation=5,
        pcie_width=16,
        pcie_max_generation=5,
        pcie_max_width=16,
        slowdown_temperature_c=89,
        is_sram_worn=False,
        is_fabric_complete=True,
        is_persistent=True,
        recovery_action=0,
    )


def test_what_is_wrong_with_a_gpu_is_read(gpu, fake_nvml):
    fake_nvml.set(2, corrected=12, uncorrected=3, remap_corrected=1, remap_uncorrected=2)
    fake_nvml.set(2, remap_pending=1, remap_failed=1, nvlink_crc=812, nvlink_replay=4)
    fake_nvml.set(2, nvlink_down=0b101, pcie_replays=7, pcie_generation=1, pcie_width=8)
    fake_nvml.set(2, recovery=4, sram_worn=1, fabric_state=2, persistence=0)
    assert gpu.read_condition() == Condition(
        ecc_corrected=12,
        ecc_uncorrected=3,
        remapped_rows=3,
        remap_pending=True,
        remap_failed=True,
        nvlink_errors=816,
        num_nvlinks=18,
        nvlinks_down=(0, 2),
        pcie_replays=7,
        pcie_generation=1,
        pcie_width=8,
        pcie_max_generation=5,
        pcie_max_width=16,
        slowdown_temperature_c=89,
        is_sram_worn=True,
        is_fabric_complete=False,
        is_persistent=False,
        recovery_action=4,
    )


@pytest.mark.parametrize(
    ("keys", "is_complete"),
    [
        ({"fabric_state": 0}, None),
        ({"fabric_state": 3, "fabric_status": 999}, False),
        ({"fabric_state": 3}, True),
    ],
)
def test_a_fabric_is_complete_or_not_or_there_is_none(gpu, fake_nvml, keys, is_complete):
    fake_nvml.set(2, **keys)
    assert gpu.read_condition().is_fabric_complete is is_complete


def test_errors_are_counted_by_link_where_the_gpu_knows_no_fields(gpu, fake_nvml):
    fake_nvml.set(2, fields=0, nvlink_crc=5, nvlink_recovery=2, nvlink_replay=1)
    condition = gpu.read_condition()
    assert condition.nvlink_errors == 8
    assert condition.recovery_action is None


def test_what_a_gpu_does_not_know_is_none_and_never_zero(nvml, fake_nvml):
    fake_nvml.set(0, counter=0, ecc=0, nvlink=0, fields=0)
    gpu = nvml.open_gpu(fake_nvml.uuid(0), 0)
    assert gpu.meter.source == "nvml-power"
    assert gpu.read_now().counter_mj is None
    assert gpu.read_state().memory_temperature_c is None
    condition = gpu.read_condition()
    unknown = ("ecc_corrected", "ecc_uncorrected", "remapped_rows", "remap_pending")
    unknown += ("remap_failed", "nvlink_errors", "num_nvlinks", "recovery_action")
    unknown += ("is_sram_worn",)
    assert [getattr(condition, name) for name in unknown] == [None] * len(unknown)


def test_a_call_that_fails_once_is_none_once(gpu, fake_nvml):
    fake_nvml.set(2, error=999)
    assert gpu.read_now() == Now()
    fake_nvml.set(2, error=0)
    assert gpu.read_now().power_mw == 120_000


@pytest.mark.parametrize("code", [15, 16, 28])
def test_a_gpu_that_is_lost_is_said_to_be_and_its_neighbours_are_read(nvml, gpu, fake_nvml, code):
    other = nvml.open_gpu(fake_nvml.uuid(3), 3)
    fake_nvml.set(2, error=code)
    with pytest.raises(DeviceLostError, match=fake_nvml.uuid(2)) as caught:
        gpu.read_now()
    assert caught.value.code == code
    assert other.read_now().power_mw == 120_000


def test_a_gpu_that_is_back_is_read_again(gpu, fake_nvml):
    fake_nvml.set(2, lost=1)
    with pytest.raises(DeviceLostError):
        gpu.read_state()
    fake_nvml.set(2, lost=0)
    assert gpu.read_state().temperature_c == 34
