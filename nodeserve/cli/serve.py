"""``nodeserve serve``: build the configuration and hand it to the supervisor."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec

from nodeserve.cli.exit_codes import to_help
from nodeserve.config import paths, release
from nodeserve.config.facts import Topology
from nodeserve.config.keys import key_file
from nodeserve.config.layout import Wish
from nodeserve.config.load import Flags, Surroundings, load_config
from nodeserve.config.node import GatewayKind, NodeConfig
from nodeserve.config.show import to_toml
from nodeserve.config.tiers import TierWish
from nodeserve.device.memory import read_memory
from nodeserve.device.topology import read_topology
from nodeserve.engine.vllm import environment
from nodeserve.engine.vllm.environment import Platform
from nodeserve.perf_model.roofline import GPUS
from nodeserve.supervisor import handover
from nodeserve.supervisor.main import run, take_over
from nodeserve.supervisor.reload import play
from nodeserve.telemetry.logging import setup

VLLM_ARGS: Final = "nodeserve.vllm_args"


class ServeCommand(click.Command):
    """Keeps what follows ``--`` for vLLM, whether or not MODEL is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split at the first ``--``."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[VLLM_ARGS] = tuple(args[at + 1 :])
            args = args[:at]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = f"{error.message.rstrip('.')}; vLLM's own arguments come last, behind a --"
            raise click.NoSuchOption(error.option_name, hint, error.possibilities, ctx) from error

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show that vLLM's arguments come last."""
        return [*super().collect_usage_pieces(ctx), "[-- VLLM ARGS]"]


@click.command("serve", cls=ServeCommand, epilog=to_help())
@click.argument("model", required=False, type=click.Path())
@click.option("--config", type=click.Path(), metavar="FILE", help="A TOML file; flags win over it.")
@click.option("--prefill", type=int, metavar="N", help="Workers that compute prompts.")
@click.option("--decode", type=int, metavar="N", help="Workers that generate.")
@click.option("--aggregated", type=int, metavar="N", help="Workers that do both.")
@click.option("--tp-prefill", type=int, metavar="K", help="GPUs of one prefill worker.")
@click.option("--tp-decode", type=int, metavar="K", help="GPUs of one decode or aggregated worker.")
@click.option("--socket", type=click.Path(), metavar="PATH", help="Where clients connect.")
@click.option("--listen", metavar="HOST:PORT", help="Listen on TCP too.")
@click.option(
    "--api-key-file", type=click.Path(), metavar="FILE", help="Keys for --listen, one a line."
)
@click.option(
    "--gateway",
    type=click.Choice([kind.value for kind in GatewayKind]),
    help="vLLM's front end; python by default, rust with --simulate.",
)
@click.option(
    "--served-model-name",
    multiple=True,
    metavar="NAME",
    help="What clients call the model; may be repeated.",
)
@click.option("--kv-host", metavar="SIZE", help="Keep KV in host memory too: 64GiB, or 50%.")
@click.option("--kv-disk", metavar="DIR[,DIR]:SIZE", help="And below that on disk.")
@click.option("--simulate", metavar="SYSTEM", help="Simulate the GPUs of, say, 8xh100-sxm.")
@click.option("--speedup", type=float, metavar="X", help="Simulate X times as fast; or inf.")
@click.option("--check", is_flag=True, help="Print the whole configuration as TOML, and exit.")
@click.pass_context
def command(ctx: click.Context, /, **given: object) -> None:
    """Serve MODEL, a directory in Hugging Face format, until stopped.

    Without counts, each GPU gets a worker that does both; of simulated GPUs, half compute prompts
    and half generate; a machine without GPUs gets one worker of each. As soon as one count is
    given, the others are 0.

    What follows -- are arguments of `vllm serve`, such as --max-model-len 4096.

    SIGTERM or Ctrl-C finishes the requests in flight, then ends the node. A second one ends
    it at once. SIGHUP reloads it, as `nodeserve reload` does.
    """
    errand = handover.errand(os.environ)
    if isinstance(errand, handover.TakeOver):
        setup()
        ctx.exit(take_over(errand))
    config = load_config(flags_from(given, ctx.meta.get(VLLM_ARGS, ())), surroundings())
    if errand is not None:
        ctx.exit(serve(config, partial(play, errand)))
    if given["check"]:
        for warning in config.warnings:
            click.echo(f"nodeserve: {warning}", err=True)
        click.echo(to_toml(config), nl=False)
        return
    ctx.exit(serve(config, run))


def flags_from(given: dict[str, object], vllm_args: tuple[str, ...]) -> Flags:
    """Return click's values as Flags."""
    wish = msgspec.convert({n: given[n] for n in Wish.__struct_fields__}, Wish)
    tiers = msgspec.convert({"host": given["kv_host"], "disk": given["kv_disk"]}, TierWish)
    own = {n: given[n] for n in Flags.__struct_fields__ if n in given}
    return msgspec.convert({**own, "wish": wish, "tiers": tiers, "vllm_args": vllm_args}, Flags)


def surroundings() -> Surroundings:
    """Return this machine, this user and the simulator's GPUs."""
    return Surroundings(
        environ=os.environ,
        uid=os.getuid(),
        topology=lambda: usable(read_topology(), installed_platform()),
        memory=read_memory,
        simulated_gpus=tuple(GPUS),
    )


def usable(topology: Topology, platform: Platform | None) -> Topology:
    """Return what the installed vLLM can compute on: its CPU build does not know GPUs."""
    if platform is not Platform.CPU:
        return topology
    return msgspec.structs.replace(topology, gpus=(), gpu_problem=None)


def installed_platform() -> Platform | None:
    """Return what the installed vLLM computes on; None without one."""
    return environment.find_vllm()[0] if release.installed_vllm_version() else None


def serve(config: NodeConfig, run_node: Callable[[NodeConfig], int]) -> int:
    """Check what only matters when the node really starts, then run it; return its exit code.

    Raises:
        ConfigError: vLLM is missing, of another version or unable to do a worker's role, a
            credential was not given, or a directory can't be used.
    """
    python = any(listener.gateway is GatewayKind.PYTHON for listener in config.listeners)
    if config.simulate is None or python:
        release.check_vllm(release.installed_vllm_version(), release.pinned_vllm_version())
    if config.simulate is None:
        environment.require_exportable(environment.find_vllm()[0], os.environ)
    for listener in config.listeners:
        if listener.api_key_file is not None:
            key_file(listener.api_key_file, os.environ)
        if listener.socket is not None:
            paths.prepare_directory(Path(listener.socket).parent, os.getuid())
    setup()
    return run_node(config)
