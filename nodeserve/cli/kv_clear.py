"""``nodeserve kv clear``: forget what the tiers hold."""

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.wire.control import CommandReply
from nodeserve.wire.kv_control import KvClear


@click.command("clear")
@click.option("--listener", metavar="NAME", help="Only what requests of this listener stored.")
@node_options
def command(listener: str | None, socket: str | None, runtime_dir: str | None) -> None:
    """Forget all KV in host memory and on disk that is in no use; pinned prefixes stay.

    With --listener only what its requests stored in host memory. What is forgotten is computed
    again when it is asked for; requests that run do not notice.
    """
    message = KvClear(listener=listener)
    click.echo(ask(find_node(socket, runtime_dir), message, CommandReply).detail)
