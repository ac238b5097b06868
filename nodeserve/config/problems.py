"""Collect everything that is wrong with a configuration, and say it all at once."""

import difflib
from collections.abc import Iterable
from typing import Final

from nodeserve.errors import ConfigError

COMMAND_LINE: Final = "command line"
"""The source of settings that are flags."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean `x`?)``, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{found[0]}`?)" if found else ""


class Problems:
    """What is wrong so far, and what the operator should merely look at.

    ``source`` is what the settings came from, for example ``config.toml``.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def of(self, source: str) -> "Problems":
        """Return a view that notes problems of another source in the same list."""
        view = Problems(source)
        view.errors, view.warnings = self.errors, self.warnings
        return view

    def add(self, key: str, what: str) -> None:
        """Note that ``key`` cannot work: ``what`` reads on from the key's path."""
        self.errors.append(f"{self.source}: {key} {what}")

    def has(self, key: str) -> bool:
        """Return whether a problem of exactly this key was added."""
        return any(error.startswith(f"{self.source}: {key} ") for error in self.errors)

    def warn(self, text: str) -> None:
        """Note what can work, but is worth a look."""
        self.warnings.append(text)

    def raise_if_any(self) -> None:
        """Raise one ConfigError that names every problem.

        Raises:
            ConfigError: At least one problem was added; one line each.
        """
        if self.errors:
            raise ConfigError("\n".join(self.errors))
