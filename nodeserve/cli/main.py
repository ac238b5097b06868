"""The command ``nodeserve``: finds a subcommand and imports only that one."""

import errno
import importlib
import traceback
from collections.abc import Mapping
from typing import ClassVar, Final

import click
from click.shell_completion import CompletionItem

from nodeserve.cli.exit_codes import INTERRUPTED, to_help
from nodeserve.errors import InvariantError, NodeserveError

COMMANDS: Final = {
    "serve": "Serve a model until stopped.",
    "status": "Show the node's processes, load and latencies.",
    "health": "Say whether the node can answer requests, and how its devices are.",
    "chat": "Talk to the model in this terminal.",
    "complete": "Let the model continue a text.",
    "drain": "Move or finish the requests of a worker or of the node, then end it.",
    "restart": "Start a worker, or another process, anew.",
    "reload": "Read the configuration again and renew the supervisor.",
    "role": "Change what a worker is used for.",
    "kv": "Show what is kept of KV below the GPUs; clear, pin, replay.",
    "usage": "Show requests and tokens, and what they cost.",
    "energy": "Show what energy was used for; show, report, plot, merge, verify.",
    "install": "Make nodeserve a service of systemd.",
    "uninstall": "Take the service away again.",
    "check-config": "Say what is wrong with a configuration file.",
    "doctor": "Check what this machine has and lacks.",
    "completion": "Print the shell completion script.",
}
"""Each is ``nodeserve.cli.<name>:command``, with ``_`` for ``-``; ``nodeserve --help`` shows the
text."""


class LazyGroup(click.Group):
    """Imports a subcommand when it is used, and turns deliberate errors into exit codes.

    Attributes:
        known: Its subcommands, with their texts.
        module: Where each of them is, as ``command``.
    """

    known: ClassVar[Mapping[str, str]] = COMMANDS
    module: ClassVar[str] = "nodeserve.cli.{}"

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names in the order of the help."""
        return list(self.known)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one subcommand."""
        if cmd_name not in self.known:
            return None
        module = importlib.import_module(self.module.format(cmd_name.replace("-", "_")))
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the subcommands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.known.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a subcommand's name without importing any."""
        names = [
            CompletionItem(name, help=text)
            for name, text in self.known.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> object:
        """Run, and show a deliberate error as one message with its own exit code."""
        try:
            return super().invoke(ctx)
        except NodeserveError as error:
            for line in str(error).splitlines():
                click.echo(f"nodeserve: {line}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read our output has seen enough
            traceback.print_exc()
            click.echo("nodeserve: this is a bug in nodeserve: please report it", err=True)
            ctx.exit(InvariantError.exit_code)


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if not wanted or ctx.resilient_parsing:
        return
    release = importlib.import_module("nodeserve.config.release")
    installed = release.installed_vllm_version() or "not installed"
    pinned = release.pinned_vllm_version()
    click.echo(f"nodeserve {release.nodeserve_version()}")
    click.echo(f"vLLM {installed} (this release needs {pinned})")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=to_help(),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of nodeserve and vLLM.",
)
def cli() -> None:
    """Serve large language models on all the GPUs of one node, behind one Unix socket."""


def main() -> None:
    """Run the command line."""
    cli(prog_name="nodeserve")


if __name__ == "__main__":
    main()
