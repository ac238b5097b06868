from nodeserve.device.throttle import reason_names


def test_reasons_are_named_lowest_bit_first():
    assert reason_names(0x1 | 0x4 | 0x40) == ("gpu_idle", "sw_power_cap", "hw_thermal_slowdown")
    assert reason_names(0) == ()


def test_reasons_of_a_newer_driver_are_their_bits():
    assert reason_names(0x8 | 0x1000 | 0x8000) == ("hw_slowdown", "0x1000", "0x8000")
