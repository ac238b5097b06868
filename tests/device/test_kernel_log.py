import pytest

from nodeserve.device.base import XidSeen
from nodeserve.device.kernel_log import (
    KERNEL,
    KERNEL_WORDS,
    SwitchError,
    parse_message,
    pci_address,
)


@pytest.mark.parametrize(
    ("message", "number", "pci", "text"),
    [
        (
            (
                "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp "
                "Exception on (GPC 7, TPC 7, SM 0): Illegal Instruction Parameter"
            ),
            13,
            "0000:cb:00",
            (
                "pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 7, "
                "SM 0): Illegal Instruction Parameter"
            ),
        ),
        (
            "NVRM: Xid (PCI:0000:b3:00.0): 79, pid=12345, GPU has fallen off the bus.",
            79,
            "0000:b3:00",
            "pid=12345, GPU has fallen off the bus.",
        ),
        ("NVRM: Xid (0000:03:00): 56, CMDre 00000000 00000080", 56, "0000:03:00", None),
        ("NVRM: Xid (PCI:0000:83:00): 48", 48, "0000:83:00", ""),
        ("NVRM: Xid (PCI:00000009:01:00): 31, pid=1, Ch 00000008", 31, "0009:01:00", None),
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 43, pid=7, Ch 00000010",
            43,
            "0000:01:00",
            "GPU-I:05 pid=7, Ch 00000010",
        ),
        (
            (
                "[6781741.548779] NVRM: Xid (PCI:0000:9B:00): 74, NVLink: fatal error detected on "
                "link 11(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
            ),
            74,
            "0000:9b:00",
            None,
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 145, RLW_REMAP Nonfatal XC0 i0 link 05 (0x0000 0x0)",
            145,
            "0018:01:00",
            None,
        ),
    ],
)
def test_an_xid_is_read_in_each_form_that_drivers_write(message, number, pci, text):
    found = parse_message(message, at_s=5.0)
    assert isinstance(found, XidSeen)
    assert (found.number, found.pci, found.source, found.at_s) == (number, pci, KERNEL, 5.0)
    assert found.meter is None
    if text is not None:
        assert found.text == text


@pytest.mark.parametrize(
    "message",
    [
        "NVRM: GPU 0000:91:00.0: GPU has fallen off the bus.",
        "NVRM: GPU at PCI:0000:91:00: GPU has fallen off the bus.",
        (
            "NVRM: The NVIDIA GPU 0000:91:00.0\nNVRM: (PCI ID: 10de:2330) installed in this system "
            "has\nNVRM: fallen off the bus and is not responding to commands."
        ),
    ],
)
def test_words_that_a_gpu_fell_off_the_bus_are_an_xid_79(message):
    assert parse_message(message) == XidSeen(
        number=79, source=KERNEL_WORDS, text="GPU has fallen off the bus", pci="0000:91:00"
    )


def test_an_error_of_a_switch_is_no_gpus():
    message = (
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore"
    )
    assert parse_message(message) == SwitchError(
        number=28006, text="Non-fatal, Link 46 MC TS crumbstore", pci="0000:c1:00"
    )


@pytest.mark.parametrize(
    "message",
    [
        "",
        "eth0: link up",
        "NVRM: GPU at PCI:0000:91:00: GPU-b6c3b2be-c55b-d076-fa0e-d464e4c7e08b",
        "NVRM: GPU 0000:91:00.0: GPU serial number is 1653723052734.",
        "NVRM: Xid (PCI:0000:91:00): unknown",
        "Xid (PCI:0000:91:00): 79, said by somebody else",
        "nvidia-nvswitch3: open (major=510)",
    ],
)
def test_other_messages_say_nothing(message):
    assert parse_message(message) is None


def test_addresses_are_compared_whoever_wrote_them():
    ours = {pci_address(text) for text in ("00000000:C1:00.0", "0000:c1:00", "0000:C1:00.0")}
    assert ours == {"0000:c1:00"}
