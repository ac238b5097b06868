"""``nodeserve kv replay``: what other policies and sizes would have made of a log."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from nodeserve.cli.kv import hit_rate
from nodeserve.cli.status import size, table
from nodeserve.config.tiers import size_in_bytes
from nodeserve.errors import ConfigError
from nodeserve.kv.eviction import POLICIES
from nodeserve.kv.replay import ReplayResult, replay
from nodeserve.kv.tier_log import LogHeader, parse


@click.command("replay")
@click.argument("log", type=click.Path())
@click.option(
    "--policy",
    "policies",
    metavar="NAME[,NAME]",
    default=",".join(POLICIES),
    show_default=True,
    help="Which policies to compare.",
)
@click.option(
    "--size",
    "sizes",
    metavar="SIZE[,SIZE]",
    help="Sizes of the tier, such as 64GiB,128GiB. Default: that of the node that wrote the log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(log: str, policies: str, sizes: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Compare eviction policies, and sizes of the host tier, on LOG, which [kv].log has written.

    A hit counts if every block before it was there too, for others an engine cannot use. Shares
    of listeners are left out: it is the whole tier that is compared.
    """
    header = read_header(Path(log))
    wanted = sizes.split(",") if sizes else [str(header.num_slots * header.block_bytes)]
    slots = [slots_of(one, header.block_bytes) for one in wanted]
    with Path(log).open(encoding="utf-8") as lines:
        try:
            found = replay(parse(lines), policies.split(","), slots, {})
        except (ConfigError, UnicodeDecodeError) as error:
            raise ConfigError(f"{log}: {error}") from error
    if as_json:
        shown = [msgspec.to_builtins(one) | {"hit_rate": one.hit_rate} for one in found]
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    else:
        click.echo("\n".join(to_lines(found, header.block_bytes)))


def read_header(path: Path) -> LogHeader:
    """Return what the log says of the node that wrote it.

    Raises:
        ConfigError: It cannot be read, or is no such log.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            first = next(parse(lines), None)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        text = f"{path}: cannot be read: {why}; name a log that [kv].log has written"
        raise ConfigError(text) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(first, LogHeader):
        raise ConfigError(f"{path}: is empty: nothing has been looked up yet")
    return first


def slots_of(text: str, block_bytes: int) -> int:
    """Return how many blocks of a log fit into a tier of size ``text``.

    Raises:
        ConfigError: It is no size, or there is no room for a block.
    """
    num_bytes = size_in_bytes(text)
    if num_bytes is None:
        raise ConfigError(f"--size is {text!r}: write bytes, or a size such as 64GiB")
    num_slots = num_bytes // max(1, block_bytes)
    if num_slots < 1:
        raise ConfigError(f"--size is {text!r}, a block of this log has {size(block_bytes)}")
    return num_slots


def to_lines(found: Sequence[ReplayResult], block_bytes: int) -> list[str]:
    """Return the comparison as a table for people."""
    headings = ("POLICY", "SIZE", "BLOCKS", "LOOKED UP", "USABLE HITS", "RATE", "EVICTED")
    rows = [
        (
            one.policy,
            size(one.num_slots * block_bytes),
            str(one.num_slots),
            str(one.keys),
            str(one.prefix_hits),
            hit_rate(one.prefix_hits, one.keys - one.prefix_hits),
            str(one.evictions),
        )
        for one in found
    ]
    return table(headings, rows)
