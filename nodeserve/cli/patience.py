"""Commands that wait for a process, and what they say when their patience ends."""

from nodeserve.cli.connection import Node, ask
from nodeserve.errors import DeadlineError
from nodeserve.wire.control import (
    CommandReply,
    DrainRequest,
    RestartRequest,
    StatusReply,
    StatusRequest,
)
from nodeserve.wire.status import ProcessStatus


def ask_patiently(
    node: Node, message: DrainRequest | RestartRequest, *, within_s: float
) -> CommandReply:
    """Give a command and return its outcome.

    Raises:
        DeadlineError: It is not done within ``within_s``; with what is still going on.
    """
    try:
        return ask(node, message, CommandReply, within_s=within_s)
    except DeadlineError:
        status = ask(node, StatusRequest(), StatusReply)
        found = (process for process in status.processes if process.name == message.worker)
        process = next(found, None)
        if process is None:
            raise
        text = (
            f"{process.name} is {_doing(process)} after {within_s:g} s; that goes on by "
            "itself: see `nodeserve status`"
        )
        if isinstance(message, DrainRequest):
            text += f", or end it with `nodeserve restart {process.name} --now`"
        raise DeadlineError(text) from None


def _doing(process: ProcessStatus) -> str:
    doing = process.state
    if process.load is not None:
        doing += f" with {process.load.running} requests running, {process.load.waiting} waiting"
    return doing if process.detail is None else f"{doing} ({process.detail})"
