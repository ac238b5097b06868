"""``nodeserve energy plot``: power, tokens and energy per token over time, as a picture."""

import importlib
from pathlib import Path
from typing import Any, Final

import click

from nodeserve.cli.energy_factors import factors_option, find_factors
from nodeserve.cli.energy_ledger import (
    find_ledger,
    ledger_options,
    period_options,
    read_hours,
    read_period,
)
from nodeserve.energy.report import By, make_report
from nodeserve.energy.report_basis import basis_of
from nodeserve.energy.series import Figure, make_figure
from nodeserve.energy.svg import COLOURS, axis_ticks, to_svg
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import CapacityError, ConfigError

_PNG_DPI: Final = 150


@click.command("plot")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    required=True,
    help="FILE.svg; FILE.png where matplotlib is installed: pip install 'nodeserve[plot]'.",
)
@period_options
@factors_option
@ledger_options
def command(  # noqa: PLR0913, PLR0917  (click passes options by name)
    output: str,
    since: str | None,
    until: str | None,
    factors_file: str | None,
    db: str | None,
    socket: str | None,
    runtime_dir: str | None,
) -> None:
    """Draw power, tokens and energy per token by hour; what is not known is a gap."""
    target = Path(output).expanduser()
    if target.suffix not in {".svg", ".png"}:
        raise ConfigError(f"--output {target}: name a file that ends with .svg or .png")
    period = read_period(since, until)
    path = find_ledger(db, socket, runtime_dir)
    rows = read_hours(path, period).rows
    factors, name = find_factors(factors_file, [path.parent])
    report = make_report(rows, By.HOUR, factors, until_unix_s=period[1])
    basis = basis_of(report, rows, factors, period=period, factors_name=name)
    caption = (
        f"{', '.join(basis.nodes) or 'no node'}: {basis.since} to {basis.until}, by hours of UTC",
        f"boundary: {basis.boundary}; method: {basis.method}",
        *basis.notes,
    )
    figure = make_figure(report, caption)
    try:
        if target.suffix == ".svg":
            target.write_text(to_svg(figure), encoding="utf-8")
        else:
            write_png(figure, target)
    except OSError as error:
        raise CapacityError(f"{target}: cannot be written: {error.strerror}") from error
    click.echo(f"{target}: {len(figure.hours_unix_s)} hours")


def write_png(figure: Figure, target: Path) -> None:
    """Write the figure as PNG.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    try:
        backend: Any = importlib.import_module("matplotlib.backends.backend_agg")
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError(
            f"--output {target}: PNG needs matplotlib: pip install 'nodeserve[plot]', or write .svg"
        ) from error
    page = figures.Figure(figsize=(9.6, 7.2), layout="constrained")
    backend.FigureCanvasAgg(page)
    hours = figure.hours_unix_s
    edges = [*hours, hours[-1] + HOUR_S] if hours else []
    ticks = axis_ticks(hours)
    for panel, axes in zip(figure.panels, page.subplots(len(figure.panels), 1), strict=True):
        for colour, curve in zip(COLOURS, panel.curves, strict=False):
            values = [float("nan") if value is None else value for value in curve.values]
            if edges:
                axes.stairs(values, edges, baseline=None, color=colour, label=curve.label)
        axes.set_title(f"{panel.title}, {panel.unit}", loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
        if edges:
            axes.legend(loc="upper right", fontsize=8)
    page.supxlabel("\n".join(figure.caption), fontsize=8)
    page.savefig(target, dpi=_PNG_DPI)
