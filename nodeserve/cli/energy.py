"""``nodeserve energy``: what the ledger holds, and what follows from it."""

from typing import Final

import click

from nodeserve.cli.main import LazyGroup

COMMANDS: Final = {
    "show": "Show what one response has used.",
    "report": "Energy, carbon and cost by listener, model, role, GPU, hour, node or zone.",
    "plot": "Draw power, tokens and energy per token over time.",
    "merge": "Report on the ledgers of several nodes.",
    "verify": "Prove that the ledger adds up, or name the row that does not.",
}
"""Each is ``nodeserve.cli.energy_<name>:command``."""


class EnergyGroup(LazyGroup):
    """Imports a subcommand when it is used."""

    known = COMMANDS
    module = "nodeserve.cli.energy_{}"


@click.group("energy", cls=EnergyGroup)
def command() -> None:
    """Show what energy was used for; docs/energy.md says how it is measured and shared."""
