"""``nodeserve restart``: give a worker a new process."""

import click

from nodeserve.cli.connection import find_node, node_options
from nodeserve.cli.patience import ask_patiently
from nodeserve.cli.workers import complete_worker
from nodeserve.wire.control import RestartRequest


@click.command("restart")
@click.argument("worker", shell_complete=complete_worker)
@click.option("--now", is_flag=True, help="Do not wait for its requests; they run again elsewhere.")
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
    worker: str,
    now: bool,  # noqa: FBT001  (click passes flags by name)
    timeout_s: float,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Drain WORKER, end its process and start the next one; wait until that serves."""
    message = RestartRequest(worker=worker, immediately=now)
    reply = ask_patiently(find_node(socket, runtime_dir), message, within_s=timeout_s)
    click.echo(reply.detail)
