"""``nodeserve uninstall``: take the service away again."""

import os
from typing import Final

import click

from nodeserve.cli.install import run
from nodeserve.cli.service_files import CONFIG, installed_paths
from nodeserve.errors import ConfigError

_UNITS: Final = (
    "nodeserve.socket",
    "nodeserve@*.socket",
    "nodeserve-tcp.socket",
    "nodeserve.service",
    "nodeserve-devices.service",
)


_ENABLED: Final = ("nodeserve.socket", "nodeserve@.socket", "nodeserve-tcp.socket", "nodeserve")


@click.command("uninstall")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
def command(*, dry_run: bool) -> None:
    """Stop the service and remove what `nodeserve install` wrote; run it as root.

    Requests in flight are finished first. The configuration, API keys, the user nodeserve and
    what it owns stay.
    """
    if os.geteuid() != 0 and not dry_run:
        raise ConfigError("nodeserve uninstall: changes /etc; run it as root, or with --dry-run")
    found = [path for path in installed_paths() if path.exists()]
    if dry_run:
        for path in found:
            click.echo(f"would remove: {path}")
        return
    if found:
        run(("systemctl", "stop", *_UNITS))
        run(("systemctl", "disable", *_ENABLED))
    for path in found:
        path.unlink()
        click.echo(f"removed: {path}")
    run(("systemctl", "daemon-reload"))
    click.echo(f"kept: {CONFIG.parent} and the user nodeserve")
