"""``nodeserve restart``: give a worker, or another place of the node, a new process."""

import click

from nodeserve.cli.connection import find_node, node_options
from nodeserve.cli.patience import ask_patiently
from nodeserve.cli.workers import complete_process
from nodeserve.wire.control import RestartRequest


@click.command("restart")
@click.argument("process", shell_complete=complete_process)
@click.option("--now", is_flag=True, help="Do not wait for what it does.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=1800.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for it; the restart itself goes on.",
)
@node_options
def command(
    process: str,
    now: bool,  # noqa: FBT001  (click passes flags by name)
    timeout_s: float,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """End PROCESS when it has finished its requests and start it anew; wait until it serves.

    With --now the requests of a worker run again elsewhere, and those of a gateway are cut off.
    Without it, who connects to a gateway that finishes waits for the next one.
    The dispatcher's end cuts off all open streams, so while it serves it takes --now.
    One that has failed is simply started, and its earlier deaths are forgotten.
    """
    message = RestartRequest(worker=process, immediately=now)
    reply = ask_patiently(find_node(socket, runtime_dir), message, within_s=timeout_s)
    click.echo(reply.detail)
