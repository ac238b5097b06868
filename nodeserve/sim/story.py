"""What happened in a simulated run, in plain words, and how it failed."""

import enum
import re
from collections.abc import Callable
from typing import Final

from nodeserve.errors import InvariantError

_CAPITAL: Final = re.compile(r"([A-Z])")


class RuleBrokenError(InvariantError):
    """Something that must hold did not.

    Attributes:
        rule: Which one, in a few words that stay the same when the run is cut shorter.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


_UNTOLD: Final = frozenset({"ready", "fields", "block_hashes", "input_address", "output_address"})


def in_words(message: object) -> str:
    """Return an event or a command in words: "worker attached: generation 3, role decode"."""
    names = getattr(message, "__slots__", ()) or getattr(message, "__struct_fields__", ())
    told = [
        f"{name.replace('_', ' ')} {_shown(getattr(message, name))}"
        for name in names
        if name not in _UNTOLD and getattr(message, name) is not None
    ]
    title = _CAPITAL.sub(r" \1", type(message).__name__).lower().strip()
    return f"{title}: {', '.join(told)}" if told else title


def _shown(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    nested = getattr(value, "__struct_fields__", None)
    return f"({in_words(value)})" if nested else str(value)


class Story:
    """The events of one run. One that nobody will read costs nothing but calls."""

    def __init__(self, now_s: Callable[[], float], *, is_told: bool) -> None:
        self.lines: list[str] = []
        self.is_told = is_told
        self._now_s = now_s

    def tell(self, text: str, *names: object) -> None:
        """Add one event; ``names`` fill the braces in ``text``."""
        if self.is_told:
            self.lines.append(f"{self._now_s():9.4f} s  {text.format(*names)}")

    def tell_of(self, who: str, message: object) -> None:
        """Add what somebody heard or said."""
        if self.is_told:
            self.tell("{}: {}", who, in_words(message))
