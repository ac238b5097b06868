"""The arguments WORKER and PROCESS, which a shell completes from the node that runs."""

from collections.abc import Sequence
from typing import Final

import click
from click.shell_completion import CompletionItem

from nodeserve.cli.connection import ask, find_node
from nodeserve.errors import NodeserveError
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.kinds import ProcessKind
from nodeserve.wire.status import ProcessStatus

_DEADLINE_S: Final = 1.0
"""A shell waits for this with the user's key pressed."""


def complete_worker(
    ctx: click.Context,
    _param: click.Parameter,
    incomplete: str,
) -> list[CompletionItem]:
    """Return the node's workers that begin like this; none where no node answers at once."""
    return [
        CompletionItem(process.name, help=f"{process.role}, {process.state}")
        for process in _processes(ctx)
        if process.kind is ProcessKind.WORKER and process.name.startswith(incomplete)
    ]


def complete_process(
    ctx: click.Context,
    _param: click.Parameter,
    incomplete: str,
) -> list[CompletionItem]:
    """Return whatever of the node can be started anew and begins like this."""
    return [
        CompletionItem(process.name, help=f"{process.role or process.kind}, {process.state}")
        for process in _processes(ctx)
        if process.kind is not ProcessKind.SUPERVISOR and process.name.startswith(incomplete)
    ]


def _processes(ctx: click.Context) -> Sequence[ProcessStatus]:
    try:
        node = find_node(ctx.params.get("socket"), ctx.params.get("runtime_dir"))
        status = ask(node, StatusRequest(), StatusReply, within_s=_DEADLINE_S)
    except NodeserveError:
        return ()
    return status.processes
