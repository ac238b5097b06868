"""``nodeserve health``: whether the node can answer requests, and how its devices are."""

import json
import time
from collections.abc import Iterator
from typing import Final

import click

from nodeserve.cli.connection import ask, find_node, node_options
from nodeserve.cli.main import LazyGroup
from nodeserve.cli.status import plain, size, table
from nodeserve.errors import PeerError
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.device_report import DeviceSample, Finding

COMMANDS: Final = {"clear": "Say that a GPU is well again."}
"""Each is ``nodeserve.cli.health_<name>:command``."""

_ABLE: Final = ("ready", "degraded")
_DEVICE_HEADINGS: Final = ("DEVICE", "NAME", "POWER", "TEMP", "SM CLOCK", "MEMORY", "THROTTLED BY")
_FINDING_HEADINGS: Final = ("DEVICE", "SIGNAL", "SEVERITY", "ACTION", "SINCE", "DETAIL")


class HealthGroup(LazyGroup):
    """Imports a subcommand when it is used."""

    known = COMMANDS
    module = "nodeserve.cli.health_{}"


@click.group("health", cls=HealthGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; see docs/health.md.")
@node_options
@click.pass_context
def command(
    ctx: click.Context,
    as_json: bool,  # noqa: FBT001  (click passes flags by name)
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Say whether the node can answer new requests; exit code 69 when it can't.

    Where devices are watched, show them too, and what is wrong with them.
    """
    if ctx.invoked_subcommand is not None:
        return
    reply = ask(find_node(socket, runtime_dir), StatusRequest(), StatusReply)
    is_able = reply.state in _ABLE
    if as_json:
        click.echo(_as_json(reply, is_able=is_able))
    line = reply.state if reply.detail is None else f"{reply.state}: {reply.detail}"
    if not is_able:
        raise PeerError(f"the node is {line}")
    if not as_json:
        click.echo(line)
        for lines in _tables(reply):
            click.echo("\n".join(["", *lines]))


def _as_json(reply: StatusReply, *, is_able: bool) -> str:
    said = {
        "able": is_able,
        "state": reply.state,
        "detail": reply.detail,
        "devices": plain(reply.devices),
        "findings": plain(reply.findings),
    }
    return json.dumps(said, indent=2)


def _tables(reply: StatusReply) -> Iterator[list[str]]:
    if reply.devices:
        yield table(_DEVICE_HEADINGS, [_device(sample) for sample in reply.devices])
    if reply.findings:
        yield table(_FINDING_HEADINGS, [_finding(finding) for finding in reply.findings])


def _device(sample: DeviceSample) -> tuple[str, ...]:
    watts = sample.power_mw
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    return (
        sample.meter,
        sample.name,
        "-" if watts is None else f"{watts / 1000:.0f} W",
        "-" if sample.temperature_c is None else f"{sample.temperature_c} C",
        "-" if sample.sm_clock_mhz is None else f"{sample.sm_clock_mhz} MHz",
        "-" if used is None or total is None else f"{size(used)} of {size(total)}",
        ", ".join(sample.throttle_reasons) or "-",
    )


def _finding(finding: Finding) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(finding.since_unix_s))
    return (
        finding.meter or "the node",
        finding.signal,
        finding.severity,
        finding.action,
        since,
        finding.detail,
    )
