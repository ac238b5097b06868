"""What becomes of simulated devices, by a script: a line for each change.

``12.5 3 temperature_c=91 throttle=64``: 12.5 s after the node began, this holds of device 3, or
with ``*`` of all of them, until another line says otherwise. ``#`` begins a comment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nodeserve.errors import ConfigError

KEYS: Final = frozenset(
    {
        "extra_w",
        "temperature_c",
        "memory_temperature_c",
        "throttle",
        "ecc_corrected",
        "ecc_uncorrected",
        "remapped_rows",
        "remap_pending",
        "remap_failed",
        "nvlink_errors",
        "nvlinks_down",
        "pcie_replays",
        "recovery_action",
        "readable",
        "lost",
        "hang",
        "reset",
    }
)
"""``extra_w`` is drawn beside what the load draws. ``readable=0`` hides the counter of energy.
``hang=1`` makes whoever asks the device wait for ever. Another ``reset`` than before lets the
counter begin anew."""

EVENT: Final = "xid"


@dataclass(frozen=True, slots=True)
class Change:
    """From ``at_s`` on, ``value`` holds of ``key``; of the key ``xid``, it happens then."""

    at_s: float
    key: str
    value: float


def parse_script(text: str, num_devices: int) -> list[list[Change]]:
    """Return the changes of each device, in order of time.

    Raises:
        ConfigError: A line is none; it is named.
    """
    changes: list[list[Change]] = [[] for _ in range(num_devices)]
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            at_s, which = float(words[0]), words[1]
            indexes = range(num_devices) if which == "*" else [int(which)]
            for index in indexes:
                changes[index] += [Change(at_s, *_pair(word)) for word in words[2:]]
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"script of simulated devices: line {number} {line!r} cannot be read: {error}; "
                "write <seconds> <device or *> <key>=<number>"
            ) from error
    for of_one in changes:
        of_one.sort(key=lambda change: change.at_s)
    return changes


def _pair(word: str) -> tuple[str, float]:
    key, equals, value = word.partition("=")
    if not equals or key not in KEYS | {EVENT}:
        known = ", ".join(sorted(KEYS | {EVENT}))
        raise ValueError(f"{word!r} is no <key>=<number>; keys are {known}")
    return key, float(value)


def present(changes: Iterable[Change], at_s: float) -> Mapping[str, float]:
    """Return what holds at a time."""
    return {c.key: c.value for c in changes if c.at_s <= at_s and c.key != EVENT}


def extra_mj(changes: Iterable[Change], at_s: float) -> float:
    """Return the energy drawn by ``extra_w`` until ``at_s``."""
    total, power_w, since_s = 0.0, 0.0, 0.0
    for change in changes:
        if change.key == "extra_w" and change.at_s < at_s:
            total += power_w * (change.at_s - since_s)
            power_w, since_s = change.value, change.at_s
    return (total + power_w * (at_s - since_s)) * 1000
