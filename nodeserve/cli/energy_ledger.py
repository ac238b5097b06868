"""Where commands find a node's ledger, and which of its hours they take."""

import os
import re
from pathlib import Path
from typing import Final

import click

from nodeserve.cli.connection import find_node
from nodeserve.clock import unix_now_s
from nodeserve.config import paths
from nodeserve.energy.merge import Part
from nodeserve.energy.utc import DAY_S, HOUR_S, parse_utc
from nodeserve.errors import ConfigError
from nodeserve.ledger.parts import read_part

_AGO: Final = re.compile(r"(?P<count>\d{1,6})(?P<unit>[hd])")


def ledger_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add ``--db``, ``--socket`` and ``--runtime-dir`` to a command."""
    db = click.option(
        "--db",
        type=click.Path(),
        metavar="FILE",
        help="The ledger. Default: that of the node that `serve` makes.",
    )
    socket = click.option(
        "--socket",
        type=click.Path(readable=False),
        metavar="PATH",
        help="The node's Unix socket. Default: where `serve` puts it.",
    )
    runtime_dir = click.option(
        "--runtime-dir",
        type=click.Path(),
        metavar="DIR",
        help="The node's runtime directory, if its configuration sets one.",
    )
    return db(socket(runtime_dir(function)))


def period_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add ``--since`` and ``--until`` to a command."""
    since = click.option(
        "--since",
        metavar="TIME",
        help="From the hour of this time on: 2026-11-30, 2026-11-30T10:00 (UTC), or 24h or 7d "
        "ago. Default: all that the ledger has.",
    )
    until = click.option(
        "--until", metavar="TIME", help="Up to the hour of this time, which is left out."
    )
    return since(until(function))


def find_ledger(db: str | None, socket: str | None, runtime_dir: str | None) -> Path:
    """Return the ledger that the options name, else the one of the node that they find.

    It need not be there. Nothing is made.
    """
    if db is not None:
        return Path(db).expanduser()
    node = find_node(socket, runtime_dir)
    return paths.find_ledger(os.environ, os.getuid(), node.runtime_dir)


def read_period(since: str | None, until: str | None) -> tuple[int, int]:
    """Return the Unix times that the options mean: whole hours, up to now at most.

    Raises:
        ConfigError: One is no time, or they are the wrong way round.
    """
    now = int(unix_now_s())
    begin = 0 if since is None else _read(since, "--since", now) // HOUR_S * HOUR_S
    end = now if until is None else min(_read(until, "--until", now) // HOUR_S * HOUR_S, now)
    if begin >= end:
        raise ConfigError(f"--since {since} --until {until}: no hour lies between them")
    return begin, end


def read_hours(path: Path, period: tuple[int, int]) -> Part:
    """Return the rows of a ledger for a period."""
    return read_part(path, since_unix_s=period[0], until_unix_s=period[1])


def _read(text: str, option: str, now_unix_s: int) -> int:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now_unix_s - int(ago["count"]) * (HOUR_S if ago["unit"] == "h" else DAY_S)
    try:
        return parse_utc(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}, or an age such as 24h or 7d") from error
