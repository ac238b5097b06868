"""``nodeserve check-config``: say what is wrong with a configuration, and start nothing."""

import click

from nodeserve.cli.serve import surroundings
from nodeserve.cli.status import size
from nodeserve.config.load import Flags, load_config


@click.command("check-config")
@click.argument("file", type=click.Path())
def command(file: str) -> None:
    """Check FILE as `nodeserve serve --config FILE` would, with everything that is wrong.

    What a node that serves already would do with it says `nodeserve reload --dry-run`.
    """
    config = load_config(Flags(config=file), surroundings())
    for warning in config.warnings:
        click.echo(f"nodeserve: {warning}", err=True)
    where = ", ".join(listener.address for listener in config.listeners)
    kept = "" if config.tiers is None else f", {size(config.tiers.host_bytes)} of KV in host memory"
    click.echo(f"{file} can be served: {len(config.workers)} workers behind {where}{kept}")
