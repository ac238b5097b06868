import pytest

from nodeserve.device.base import Condition, State
from nodeserve.monitor.looked_up import is_nvlink_fatal, look


def found(condition, state=None):
    return dict(look(condition, state or State()))


def test_what_a_device_does_not_say_is_neither_good_nor_bad():
    assert found(Condition()) == {}


def test_a_device_that_is_well_says_so_for_each():
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
    signals = "nvlink_inactive sram_ecc_threshold fabric_incomplete persistence_off"
    signals += " temperature_limit pcie_degraded"
    assert found(condition, State(temperature_c=70, utilization=0.9)) == dict.fromkeys(
        signals.split()
    )


@pytest.mark.parametrize(
    ("signal", "fields", "detail"),
    [
        ("nvlink_inactive", {"num_nvlinks": 18, "nvlinks_down": (3, 7)}, "links 3, 7 of 18"),
        ("sram_ecc_threshold", {"is_sram_worn": True}, "over its threshold"),
        ("fabric_incomplete", {"is_fabric_complete": False}, "not complete"),
        ("persistence_off", {"is_persistent": False}, "off"),
    ],
)
def test_what_is_wrong_is_said_with_its_numbers(signal, fields, detail):
    assert found(Condition(**fields)) == {signal: detail}


def test_a_card_with_no_link_in_use_is_connected_to_no_other():
    assert found(Condition(num_nvlinks=2, nvlinks_down=(0, 1))) == {"nvlink_inactive": None}


@pytest.mark.parametrize(("temperature_c", "detail"), [(88, None), (89, "89 of 89 C")])
def test_the_cards_own_limit_counts(temperature_c, detail):
    state = State(temperature_c=temperature_c)
    assert found(Condition(slowdown_temperature_c=89), state) == {"temperature_limit": detail}


@pytest.mark.parametrize(
    ("generation", "width", "utilization", "expected"),
    [
        (5, 16, 0.9, {"pcie_degraded": None}),
        (4, 16, 0.9, {"pcie_degraded": "generation 4 x16 of 5 x16"}),
        (5, 8, 0.5, {"pcie_degraded": "generation 5 x8 of 5 x16"}),
        (1, 16, 0.1, {}),
        (None, 16, 0.9, {}),
    ],
)
def test_a_link_is_judged_under_load_alone(generation, width, utilization, expected):
    condition = Condition(
        pcie_generation=generation, pcie_width=width, pcie_max_generation=5, pcie_max_width=16
    )
    assert found(condition, State(utilization=utilization)) == expected


@pytest.mark.parametrize(
    ("number", "text", "is_fatal"),
    [
        (74, "pid=1, NVLink: fatal error detected on link 11(0x10000, 0x0)", True),
        (145, "RLW_REMAP Fatal XC0 i0 link 05 (0x0000 0x0)", True),
        (145, "RLW_REMAP Nonfatal XC0 i0 link 05 (0x0000 0x0)", False),
        (74, "Non-fatal, Link 46", False),
        (79, "fatal", False),
        (74, "", False),
    ],
)
def test_an_nvlinks_error_is_fatal_where_the_kernel_says_so(number, text, is_fatal):
    assert is_nvlink_fatal(number, text) == is_fatal
