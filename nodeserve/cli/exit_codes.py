"""What each exit code of ``nodeserve`` means: shown by ``--help`` and by the README."""

import signal
from collections.abc import Mapping
from typing import Final

from nodeserve.errors import CapacityError, ConfigError, InvariantError, PeerError, RequestError

CUT_OFF: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 128 + signal.SIGINT
"""What shells say of a program that Ctrl-C ended."""

EXIT_CODES: Final[Mapping[int, str]] = {
    0: "done; a node ended as it was asked to: drained, or by a second signal at once",
    CUT_OFF: "requests were cut off: the drain took too long; or a check of `doctor` failed",
    USAGE: "wrong usage: see --help",
    RequestError.exit_code: "refused: the node runs, and cannot do what it was asked",
    PeerError.exit_code: "no node answers, or a process of it died or does not answer",
    InvariantError.exit_code: "a bug in nodeserve: please report it",
    CapacityError.exit_code: "there is no room at present: try later",
    ConfigError.exit_code: "a setting can never work, or a node runs there already: change it",
    INTERRUPTED: "Ctrl-C",
}
"""Those from 64 to 78 are of sysexits.h; what they mean is with the errors that end with them."""


def to_help() -> str:
    r"""Return the table for ``--help``, as click must not wrap it (``\b``)."""
    rows = [f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["\b", "Exit codes:", *rows])


def to_markdown() -> str:
    """Return the table for the README."""
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["| exit code | what it means |", "| --- | --- |", *rows])
