"""``nodeserve kv pin``: keep a prefix in host memory."""

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvPin


@click.command("pin")
@click.argument("prefix")
@node_options
def command(prefix: str, socket: str | None, runtime_dir: str | None) -> None:
    """Keep PREFIX in host memory until it is unpinned, the tier is resized or the daemon ends.

    `nodeserve kv` shows the prefixes that were asked for most by their keys; enough first digits
    of one will do.
    """
    click.echo(ask(find_node(socket, runtime_dir), KvPin(key=prefix), CommandReply).detail)
