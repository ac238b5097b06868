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
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@node_options
def command(
    timeout_s: float,
    dry_run: bool,  # noqa: FBT001  (click passes flags by name)
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Read the configuration again, and let the installed release supervise the node.

    No request is lost. Only processes whose settings have changed are restarted, one by one;
    what cannot change while the node serves is refused, and then nothing changes.
    """
    message = ReloadRequest(dry_run=dry_run)
    reply = ask(find_node(socket, runtime_dir), message, CommandReply, within_s=timeout_s)
    click.echo(reply.detail)
