"""``nodeserve check-config``: say what is wrong with a configuration, and start nothing."""

import os

import click
import msgspec

from nodeserve.cli.serve import installed_platform, surroundings
from nodeserve.cli.status import size
from nodeserve.config.facts import Topology
from nodeserve.config.load import Flags, load_config, simulated_topology
from nodeserve.engine.vllm import environment


@click.command("check-config")
@click.argument("file", type=click.Path())
@click.option(
    "--gpus",
    type=click.IntRange(1, 999),
    metavar="N",
    help="Check it for a machine with N GPUs, half of them on each of two NUMA nodes.",
)
@click.option("--simulate", metavar="SYSTEM", help="Check it for serve --simulate SYSTEM.")
def command(file: str, gpus: int | None, simulate: str | None) -> None:
    """Check FILE as `nodeserve serve --config FILE` would, with everything that is wrong.

    What a node that serves already would do with it says `nodeserve reload --dry-run`.
    """
    if gpus is not None and simulate is not None:
        raise click.UsageError("give --gpus or --simulate, not both")
    around, platform = surroundings(), installed_platform()
    if gpus is not None:
        there = machine_of(gpus)
        around = msgspec.structs.replace(around, topology=lambda: there)
    config = load_config(Flags(config=file, simulate=simulate), around)
    if config.simulate is None and platform is not None and gpus is None:
        environment.require_exportable(platform, os.environ)
    for warning in config.warnings:
        click.echo(f"nodeserve: {warning}", err=True)
    where = ", ".join(listener.address for listener in config.listeners)
    kept = "" if config.tiers is None else f", {size(config.tiers.host_bytes)} of KV in host memory"
    click.echo(f"{file} can be served: {len(config.workers)} workers behind {where}{kept}")


def machine_of(num_gpus: int) -> Topology:
    """Return what is known of GPUs that are not here: their indices, and that they are real."""
    simulated = simulated_topology(f"{num_gpus}xgpu")
    gpus = (msgspec.structs.replace(gpu, uuid=f"GPU-{gpu.index}") for gpu in simulated.gpus)
    return msgspec.structs.replace(simulated, gpus=tuple(gpus))
