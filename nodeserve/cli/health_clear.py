"""``nodeserve health clear``: lift what a GPU was fenced for."""

from typing import Final

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import CommandReply
from nodeserve.wire.device_control import HealthClear

ALL: Final = "all"


@click.command("clear")
@click.argument("device", metavar="DEVICE|all")
@node_options
def command(device: str, socket: str | None, runtime_dir: str | None) -> None:
    """Say that DEVICE, as `nodeserve health` names it, is well again: its worker starts."""
    asked = HealthClear(meter=None if device == ALL else device)
    click.echo(ask(find_node(socket, runtime_dir), asked, CommandReply).detail)
