"""``nodeserve completion``: print what a shell needs to complete nodeserve's commands."""

from typing import Final

import click
from click.shell_completion import get_completion_class

from nodeserve.errors import InvariantError

_HELP: Final = """Print the completion script for SHELL.

\b
bash:  nodeserve completion bash > ~/.local/share/bash-completion/completions/nodeserve
zsh:   nodeserve completion zsh > "${fpath[1]}/_nodeserve"
fish:  nodeserve completion fish > ~/.config/fish/completions/nodeserve.fish
"""


@click.command("completion", help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for ``shell``."""
    found = get_completion_class(shell)
    if found is None:
        raise InvariantError(f"completion: click has no {shell}; report it")
    root = ctx.find_root().command
    click.echo(found(root, {}, "nodeserve", "_NODESERVE_COMPLETE").source())
