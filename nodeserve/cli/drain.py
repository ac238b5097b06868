"""``nodeserve drain``: empty a worker or the whole node, then end it."""

import click

from nodeserve.cli.connection import find_node, node_options
from nodeserve.cli.patience import ask_patiently
from nodeserve.cli.workers import complete_worker
from nodeserve.wire.control import DrainRequest


@click.command("drain")
@click.argument("worker", required=False, shell_complete=complete_worker)
@click.option("--node", is_flag=True, help="Drain the whole node; the daemon then exits.")
@click.option("--force", is_flag=True, help="Drain also the last WORKER that decodes, or prefills.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for it; the drain itself goes on.",
)
@node_options
def command(
    worker: str | None,
    node: bool,  # noqa: FBT001  (click passes flags by name)
    force: bool,  # noqa: FBT001
    timeout_s: float,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Move or finish the requests of WORKER, end it and leave it down; with --node, finish all.

    Waits up to --timeout seconds until a worker is down. `nodeserve restart WORKER` brings it
    back.
    """
    if (worker is None) == (not node):
        raise click.UsageError("name one WORKER, or give --node, not both")
    request = DrainRequest(worker=worker, force=force)
    reply = ask_patiently(find_node(socket, runtime_dir), request, within_s=timeout_s)
    click.echo(reply.detail)
