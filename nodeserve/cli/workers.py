"""The argument WORKER, which a shell completes from the node that runs."""

from typing import Final

import click
from click.shell_completion import CompletionItem

from nodeserve.cli.connection import ask, find_node
from nodeserve.errors import NodeserveError
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.kinds import ProcessKind

_DEADLINE_S: Final = 1.0
"""A shell waits for this with the user's key pressed."""


def complete_worker(
    ctx: click.Context,
    _param: click.Parameter,
    incomplete: str,
) -> list[CompletionItem]:
    """Return the node's workers that begin like this; none where no node answers at once."""
    try:
        node = find_node(ctx.params.get("socket"), ctx.params.get("runtime_dir"))
        status = ask(node, StatusRequest(), StatusReply, within_s=_DEADLINE_S)
    except NodeserveError:
        return []
    return [
        CompletionItem(process.name, help=f"{process.role}, {process.state}")
        for process in status.processes
        if process.kind is ProcessKind.WORKER and process.name.startswith(incomplete)
    ]
