"""``nodeserve reload``: replace the supervisor while everything else goes on."""

import time
from collections.abc import Callable
from typing import Final

import click

from nodeserve.cli.connection import Node, ask, find_node, node_options
from nodeserve.errors import DeadlineError, PeerError
from nodeserve.wire.control import CommandReply, ReloadRequest, StatusReply, StatusRequest

LOOK_EVERY_S: Final = 0.5

_GOES_ON: Final = "that goes on by itself: see `nodeserve status`"


@click.command("reload")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=1800.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait; what it has begun goes on.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--no-wait", is_flag=True, help="Do not wait for processes that start or end.")
@node_options
def command(
    timeout_s: float,
    dry_run: bool,  # noqa: FBT001  (click passes flags by name)
    no_wait: bool,  # noqa: FBT001
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Read the configuration again, and let the installed release supervise the node.

    No request is lost. Only processes whose settings have changed are restarted, one by one;
    what cannot change while the node serves is refused, and then nothing changes.
    Waits until the last of them serves; Ctrl-C ends the waiting alone.
    """
    node = find_node(socket, runtime_dir)
    until_s = time.monotonic() + timeout_s
    reply = ask(node, ReloadRequest(dry_run=dry_run), CommandReply, within_s=timeout_s)
    click.echo(reply.detail)
    if dry_run or no_wait:
        return
    try:
        wait_until_done(node, until_s)
    except KeyboardInterrupt:
        click.echo(f"\nnodeserve: not waited for: {_GOES_ON}", err=True)
        raise


def wait_until_done(
    node: Node, until_s: float, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when the last process that a reload concerns serves, and say so for each.

    Raises:
        PeerError: One did not come back, and the rest was left as it is.
        DeadlineError: It takes until after ``until_s``, a time of the monotonic clock.
    """
    status = ask(node, StatusRequest(), StatusReply)
    some = bool(status.reloading)
    while status.reloading:
        before = status.reloading
        if time.monotonic() >= until_s:
            raise DeadlineError(f"{', '.join(before)} not done in time; {_GOES_ON}")
        sleep(LOOK_EVERY_S)
        status = ask(node, StatusRequest(), StatusReply)
        done = [name for name in before if name not in status.reloading]
        if done and status.reload_halted is None:
            click.echo(f"{', '.join(done)} done, {len(status.reloading)} to go")
    if status.reload_halted is not None:
        text = f"{status.reload_halted} did not come back, so the rest runs as before"
        raise PeerError(f"{text}; {status.detail or 'see its log'}")
    if some and status.detail is not None:
        click.echo(f"nodeserve: the node is {status.state}: {status.detail}", err=True)
