"""``nodeserve kv unpin``: let a pinned prefix be evicted again."""

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvUnpin


@click.command("unpin")
@click.argument("prefix", required=False)
@click.option("--all", "every", is_flag=True, help="Unpin every prefix.")
@node_options
def command(
    prefix: str | None,
    every: bool,  # noqa: FBT001  (click passes flags by name)
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Let PREFIX, or with --all every pinned one, be evicted again when its turn comes."""
    if (prefix is None) is not every:
        raise click.UsageError("name a PREFIX, as `nodeserve kv` shows it, or give --all")
    click.echo(ask(find_node(socket, runtime_dir), KvUnpin(key=prefix), CommandReply).detail)
