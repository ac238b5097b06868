"""``nodeserve health``: whether the node can answer requests, for scripts and load balancers."""

from typing import Final

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.errors import PeerError
from nodeserve.wire.control import StatusReply, StatusRequest

_ABLE: Final = ("ready", "degraded")


@click.command("health")
@node_options
def command(socket: str | None, runtime_dir: str | None) -> None:
    """Say whether the node can answer new requests; exit code 69 when it can't."""
    reply = ask(find_node(socket, runtime_dir), StatusRequest(), StatusReply)
    line = reply.state if reply.detail is None else f"{reply.state}: {reply.detail}"
    if reply.state not in _ABLE:
        raise PeerError(f"the node is {line}")
    click.echo(line)
