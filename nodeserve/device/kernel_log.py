"""XIDs in the kernel's messages, where the NVIDIA driver writes all of them, at once.

NVML's events lack some of the gravest (79, 119, 120), and its counters say nothing of them.
"""

import re
from dataclasses import dataclass
from typing import Final

from nodeserve.device.base import XidSeen

FELL_OFF_THE_BUS: Final = 79

KERNEL: Final = "kernel"
KERNEL_WORDS: Final = "kernel-words"
"""Sources of an XID: its number, or words that mean it."""

_PCI: Final = r"(?:PCI:)?(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_XID: Final = re.compile(
    rf"NVRM: Xid \({_PCI}(?P<instance> [^)]*)?\): (?P<number>\d+)(?:,\s*(?P<text>.*))?"
)
"""With ``GPU-I:05`` behind the address it is of a MIG instance."""

_SXID: Final = re.compile(
    rf"nvidia-nvswitch\d*: SXid \({_PCI}\): (?P<number>\d+)(?:,\s*(?P<text>.*))?"
)
_OFF_THE_BUS: Final = re.compile(
    rf"NVRM: (?:The NVIDIA )?GPU (?:at )?{_PCI}\s?[:(\s].*fallen off the bus", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchError:
    """An SXid: an NVSwitch's error, which concerns every GPU that is connected to it."""

    number: int
    text: str
    pci: str
    at_s: float | None = None


def pci_address(text: str) -> str:
    """Return an address as all that name it can be compared: ``0000:19:00``, no function.

    The kernel writes four digits of domain, NVML eight.
    """
    domain, bus, device = text.strip().lower().partition(".")[0].split(":")
    return f"{int(domain, 16):04x}:{bus}:{device}"


def parse_message(message: str, at_s: float | None = None) -> XidSeen | SwitchError | None:
    """Return the error that a line of the kernel's tells of; None for any other.

    Formats are those of the drivers 390 to 580: with and without ``PCI:``, with four or eight
    digits of domain, with a function, a MIG instance, or only the words that a GPU has fallen off
    the bus, which is XID 79 also where the driver cannot say so.
    """
    if "NVRM" not in message and "SXid" not in message:
        return None
    if (found := _XID.search(message)) is not None:
        instance = (found["instance"] or "").strip()
        text = (found["text"] or "").strip()
        return XidSeen(
            number=int(found["number"]),
            source=KERNEL,
            text=f"{instance} {text}".strip(),
            pci=pci_address(found["pci"]),
            at_s=at_s,
        )
    if (found := _SXID.search(message)) is not None:
        return SwitchError(
            number=int(found["number"]),
            text=(found["text"] or "").strip(),
            pci=pci_address(found["pci"]),
            at_s=at_s,
        )
    if (found := _OFF_THE_BUS.search(message)) is not None:
        return XidSeen(
            number=FELL_OFF_THE_BUS,
            source=KERNEL_WORDS,
            text="GPU has fallen off the bus",
            pci=pci_address(found["pci"]),
            at_s=at_s,
        )
    return None
