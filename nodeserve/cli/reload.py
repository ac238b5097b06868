"""``nodeserve reload``: replace the supervisor while everything else goes on."""

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import CommandReply, ReloadRequest


@click.command("reload")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=120.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait.",
)
@node_options
def command(timeout_s: float, socket: str | None, runtime_dir: str | None) -> None:
    """Read the configuration again, and let the installed release supervise the node.

    No request is lost and no process of the node ends.
    """
    reply = ask(find_node(socket, runtime_dir), ReloadRequest(), CommandReply, within_s=timeout_s)
    click.echo(reply.detail)
