"""``nodeserve role``: change what a worker is used for while it runs."""

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.cli.workers import complete_worker
from nodeserve.wire.control import CommandReply, RoleRequest
from nodeserve.wire.kinds import Role


@click.command("role")
@click.argument("worker", shell_complete=complete_worker)
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option(
    "--force", is_flag=True, help="Change also the last WORKER that decodes, or prefills."
)
@node_options
def command(
    worker: str,
    role: str,
    force: bool,  # noqa: FBT001  (click passes flags by name)
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Use WORKER for ROLE from now on. Nothing restarts, and requests in flight stay."""
    message = RoleRequest(worker=worker, role=Role(role), force=force)
    reply = ask(find_node(socket, runtime_dir), message, CommandReply)
    click.echo(reply.detail)
