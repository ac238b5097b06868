"""``nodeserve kv``: what the tiers below the GPUs hold, and commands about it."""

from typing import Final

import click
import msgspec

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.cli.kv_metrics import to_metrics
from nodeserve.cli.main import LazyGroup
from nodeserve.cli.status import moved, plain, size, table
from nodeserve.wire.kv_control import (
    KvListenerLoad,
    KvPrefix,
    KvTierLoad,
    KvTierStatus,
    KvTierStatusRequest,
)

COMMANDS: Final = {
    "clear": "Forget what is in no use.",
    "pin": "Keep a prefix in host memory.",
    "unpin": "Let a pinned prefix be evicted again.",
    "replay": "Compare policies on a log of this node.",
}
"""Each is ``nodeserve.cli.kv_<name>:command``."""

_TIER_HEADINGS: Final = (
    *("TIER", "USED", "SIZE", "BLOCKS", "HITS", "MISSES", "HIT RATE", "STORED", "EVICTED"),
    *("DROPPED", "CORRUPT", "READ", "WRITTEN"),
)
_LISTENER_HEADINGS: Final = (
    *("LISTENER", "SHARE", "USED", "BLOCKS", "HITS", "MISSES", "HIT RATE", "STORED", "EVICTED"),
    "DROPPED",
)
_PREFIX_HEADINGS: Final = ("PREFIX", "BLOCKS", "HITS", "PINNED")
_KEY_DIGITS: Final = 16


class KvGroup(LazyGroup):
    """Imports a subcommand when it is used."""

    known = COMMANDS
    module = "nodeserve.cli.kv_{}"


@click.group("kv", cls=KvGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; see docs/kv.md.")
@click.option("--metrics", "as_metrics", is_flag=True, help="Print metrics as Prometheus text.")
@node_options
@click.pass_context
def command(
    ctx: click.Context,
    as_json: bool,  # noqa: FBT001  (click passes flags by name)
    as_metrics: bool,  # noqa: FBT001
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Show the KV tiers below the GPUs: how full, how often hit, by whom, and what is in them."""
    if ctx.invoked_subcommand is not None:
        return
    reply = ask(find_node(socket, runtime_dir), KvTierStatusRequest(), KvTierStatus)
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(plain(reply)), indent=2).decode()
        click.echo(text)
    elif as_metrics:
        click.echo(to_metrics(reply), nl=False)
    else:
        click.echo(to_text(reply))


def to_text(status: KvTierStatus) -> str:
    """Return the tiers as a page for people."""
    lines = [*_state(status), "", *table(_TIER_HEADINGS, [_tier_row(t) for t in status.tiers])]
    lines += [f"{t.name}: switched off: {t.failure}" for t in status.tiers if t.failure]
    if status.listeners:
        lines += ["", *table(_LISTENER_HEADINGS, [_listener_row(x) for x in status.listeners])]
    if status.prefixes:
        lines += ["", *table(_PREFIX_HEADINGS, [_prefix_row(p) for p in status.prefixes])]
    lines += [
        f"engine of generation {generation}: uses no tier: {reason}"
        for generation, reason in status.refused_engines.items()
    ]
    return "\n".join(lines)


def _state(status: KvTierStatus) -> list[str]:
    match status.state:
        case "waiting":
            return ["no engine has asked for the tiers yet"]
        case "adopting":
            return ["takes over what the block manager before this one has left"]
        case _:
            blocks = f"blocks of {size(status.block_bytes)}" if status.block_bytes else "no blocks"
            cost = status.lookup_us_per_key
            speed = "" if cost is None else f", {cost:.2f} us a key"
            asked = f"{status.lookups} look-ups of {status.looked_up_keys} blocks{speed}"
            return [f"{blocks}, {len(status.engines)} engines, {asked}"]


def _tier_row(tier: KvTierLoad) -> tuple[str, ...]:
    return (
        tier.name,
        size(tier.used_bytes),
        size(tier.capacity_bytes),
        f"{tier.used_slots}/{tier.slots}" if tier.slots else str(tier.used_slots),
        str(tier.hits),
        str(tier.misses),
        hit_rate(tier.hits, tier.misses),
        str(tier.stores),
        str(tier.evictions),
        str(tier.dropped),
        str(tier.corrupt),
        moved(tier.read_bytes, tier.read_gbps),
        moved(tier.written_bytes, tier.written_gbps),
    )


def _listener_row(load: KvListenerLoad) -> tuple[str, ...]:
    return (
        load.name,
        "-" if load.quota is None else f"{load.quota:.0%}",
        size(load.used_bytes),
        str(load.slots),
        str(load.hits),
        str(load.misses),
        hit_rate(load.hits, load.misses),
        str(load.stores),
        str(load.evictions),
        str(load.dropped),
    )


def _prefix_row(prefix: KvPrefix) -> tuple[str, ...]:
    pinned = "yes" if prefix.pinned else "-"
    return (prefix.key[:_KEY_DIGITS], str(prefix.blocks), str(prefix.hits), pinned)


def hit_rate(hits: int, misses: int) -> str:
    """Write the share of blocks asked for that were there; ``-`` where none was asked for."""
    asked = hits + misses
    return f"{hits / asked:.1%}" if asked else "-"
