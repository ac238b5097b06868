"""Put factors together: the shipped tables, the operator's file, what a command prints."""

import subprocess
from collections.abc import Iterable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from nodeserve.config.factors import FactorsFile, PriceTable, read_factors
from nodeserve.energy.intensity import Factor, Interval
from nodeserve.energy.intensity_csv import (
    make_intensities,
    parse_output,
    parse_series,
    require_averages,
)
from nodeserve.energy.prices import Price, Prices
from nodeserve.energy.report_sums import Factors
from nodeserve.energy.sci import Embodied, Pue, Sites, parse_embodied
from nodeserve.errors import ConfigError, PeerError

FILE_NAME: Final = "factors.toml"
SERVICE_FILE: Final = Path("/etc/nodeserve") / FILE_NAME
SHIPPED: Final = "those that are shipped; no file of this site's"

_COMMAND_DEADLINE_S: Final = 30.0


def find_factors(given: str | None, beside: Iterable[Path]) -> tuple[Factors, str]:
    """Return the factors, and what to call where they are from.

    They are of the file that is ``given``, else of ``factors.toml`` in the first of the
    directories in ``beside`` that has one, else of /etc/nodeserve, else the shipped ones alone.

    Raises:
        ConfigError: A file cannot be read, or something in it can never work.
        PeerError: The command for intensities fails.
    """
    candidates = [*(directory / FILE_NAME for directory in beside), SERVICE_FILE]
    path = Path(given).expanduser() if given else next((p for p in candidates if p.is_file()), None)
    if path is None:
        return make_factors(FactorsFile(), Path()), SHIPPED
    return make_factors(read_factors(path), path.absolute().parent), str(path)


def make_factors(file: FactorsFile, directory: Path) -> Factors:
    """Return the factors of a file in ``directory``, over those that are shipped.

    Raises:
        ConfigError: The series of intensities is wrong; PeerError: its command fails.
    """
    series, constant = _intensities(file, directory)
    own = [
        Embodied(
            match=row.match,
            device_kg=_exact(row.device_kg),
            server_kg=_exact(row.server_kg),
            devices_per_server=row.devices_per_server,
            life_years=_exact(row.life_years),
            source=row.source,
        )
        for row in file.embodied
    ]
    pues = {site.zone: Pue(value=_exact(site.pue), source=site.source) for site in file.site}
    return Factors(
        intensities=make_intensities(_shipped("intensity_yearly.csv"), series, constant),
        sites=Sites(
            elsewhere=pues.get(None, Pue()),
            by_zone={zone: pue for zone, pue in pues.items() if zone is not None},
        ),
        embodied=(*own, *parse_embodied(_shipped("embodied.csv"))),
        prices=_prices(file),
    )


def factors_option(function: click.decorators.FC) -> click.decorators.FC:
    """Add ``--factors`` to a command."""
    return click.option(
        "--factors",
        "factors_file",
        type=click.Path(),
        metavar="FILE",
        help="Intensities, PUE, prices: a TOML file; see docs/energy.md. Default: factors.toml "
        "beside the ledger or in /etc/nodeserve.",
    )(function)


def _prices(file: FactorsFile) -> Prices | None:
    if file.currency is None:
        return None
    electricity = file.electricity_per_kwh
    return Prices(
        currency=file.currency,
        prices=tuple(_price(row) for row in file.price),
        electricity_per_kwh=None if electricity is None else _exact(electricity),
    )


def _price(row: PriceTable) -> Price:
    return Price(
        listener=row.listener,
        model=row.model,
        prompt=_exact(row.prompt),
        cached=_exact(row.prompt if row.cached is None else row.cached),
        output=_exact(row.output),
    )


def _intensities(file: FactorsFile, directory: Path) -> tuple[list[Interval], Factor | None]:
    constant: Factor | None = None
    if file.intensity.command:
        name = f"`{' '.join(file.intensity.command)}`"
        series, constant = parse_output(_run(file.intensity.command, name), name)
    elif file.intensity.file is not None:
        path = directory / Path(file.intensity.file).expanduser()
        name = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{name}: cannot be read: {why}; see `intensity.file`") from error
        series = parse_series(text, name)
    else:
        return [], None
    require_averages(series, name)
    return series, constant


def _run(command: tuple[str, ...], name: str) -> str:
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ConfigError(f"{name}: cannot be run: {error.strerror}; see `intensity`") from error
    except subprocess.TimeoutExpired as error:
        text = f"{name}: has not ended within {_COMMAND_DEADLINE_S:.0f} s; make it faster"
        raise PeerError(text) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: prints what is not UTF-8; see `intensity`") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PeerError(f"{name}: ended with {done.returncode}: {last}")
    return done.stdout


def _exact(value: float) -> Fraction:
    """Return the decimal number that the file has, not the nearest binary one."""
    return Fraction(repr(value))


def _shipped(name: str) -> str:
    return files("nodeserve.energy").joinpath("data", name).read_text(encoding="utf-8")
