"""``nodeserve doctor``: say what this machine has and lacks."""

import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from nodeserve.cli import checks, tier_checks
from nodeserve.cli.checks import Check, Verdict
from nodeserve.config import paths, release
from nodeserve.device.memory import read_huge_pages, read_memory
from nodeserve.device.topology import read_topology
from nodeserve.transfer.arenas import memory_nodes

_COLOURS: Final[Mapping[Verdict, str]] = {
    Verdict.OK: "green",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "red",
}


@click.command("doctor")
@click.argument("model", required=False, type=click.Path())
@click.option(
    "--socket", type=click.Path(), metavar="PATH", help="Where a node listens, or is to listen."
)
@click.option(
    "--kv-disk",
    "disks",
    type=click.Path(),
    multiple=True,
    metavar="DIR",
    help="A directory that is to hold KV; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    socket: str | None,
    disks: tuple[str, ...],
    as_json: bool,  # noqa: FBT001  (click passes flags by name)
) -> None:
    """Check what this machine has and lacks, and MODEL where it is given.

    Each line is ok, warn or fail, with what to do. Exits with 1 if a line is fail.
    """
    found = list(examine(model, socket, [Path(disk) for disk in disks]))
    failed = any(check.verdict is Verdict.FAIL for check in found)
    if as_json:
        report = {"ok": not failed, "checks": [msgspec.structs.asdict(check) for check in found]}
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        for line in to_lines(found):
            click.echo(line)
    ctx.exit(1 if failed else 0)


def examine(model: str | None, socket: str | None, disks: Sequence[Path] = ()) -> Iterator[Check]:
    """Yield every check of this machine, in the order of the report."""
    topology = read_topology()
    place = Path(socket) if socket else paths.find_socket(os.environ, os.getuid())
    yield from checks.check_versions(
        sys.version_info[:3],
        release.installed_vllm_version(),
        release.pinned_vllm_version(),
        os.environ,
    )
    yield from checks.check_gpus(topology)
    yield checks.check_cpus(topology)
    yield checks.check_files(resource.getrlimit(resource.RLIMIT_NOFILE))
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield checks.check_locked_memory(locked, has_gpus=bool(topology.gpus))
    yield checks.check_shared_memory(Path("/dev/shm"))  # noqa: S108  (where Linux has it)
    yield checks.check_peer_memory()
    yield tier_checks.check_tier_memory(read_memory(), read_huge_pages(), topology)
    yield tier_checks.check_memory_nodes(memory_nodes(), topology)
    yield from tier_checks.check_tier_directories(disks)
    yield from checks.check_socket(place.expanduser().absolute())
    if model is not None:
        yield checks.check_model(model, os.environ)


def to_lines(found: Sequence[Check]) -> Iterator[str]:
    """Yield the report for people; advice stands below its line."""
    width = max(len(check.name) for check in found)
    for check in found:
        verdict = click.style(f"{check.verdict:<4}", fg=_COLOURS[check.verdict])
        yield f"{verdict}  {check.name:<{width}}  {check.found}"
        if check.advice:
            yield f"{'':<{width + 8}}→ {check.advice}"
