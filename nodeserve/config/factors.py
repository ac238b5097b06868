"""The factors file: what turns a ledger's energy and tokens into carbon and money.

It is no part of a node's configuration: a ledger holds neither carbon nor money, a better factor
restates old figures without touching a node, and one file serves the ledgers of many nodes.
"""

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from nodeserve.config.problems import Problems
from nodeserve.config.read import read_struct
from nodeserve.errors import ConfigError


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. None stands for a key that is not given."""


class IntensityTable(_Table, frozen=True):
    """``[intensity]``: an operator's series, over the shipped yearly table."""

    file: str | None = None
    command: tuple[str, ...] = ()


class SiteTable(_Table, frozen=True):
    """One ``[[site]]``: the PUE of a zone's site, of all sites where no zone is named."""

    pue: float
    source: str
    zone: str | None = None


class EmbodiedTable(_Table, frozen=True):
    """One ``[[embodied]]``: what making a device stands for; ``match`` is part of its name."""

    match: str
    device_kg: float
    life_years: float
    source: str
    server_kg: float = 0.0
    devices_per_server: int = 1


class PriceTable(_Table, frozen=True):
    """One ``[[price]]``: per million tokens, of a listener, a model, both or any."""

    prompt: float
    output: float
    cached: float | None = None
    listener: str | None = None
    model: str | None = None


class FactorsFile(_Table, frozen=True):
    """The whole file."""

    currency: str | None = None
    electricity_per_kwh: float | None = None
    intensity: IntensityTable = IntensityTable()
    site: tuple[SiteTable, ...] = ()
    embodied: tuple[EmbodiedTable, ...] = ()
    price: tuple[PriceTable, ...] = ()


def read_factors(path: Path) -> FactorsFile:
    """Return the factors file at ``path``, checked whole.

    Raises:
        ConfigError: It cannot be read, or something in it can never work; all of it is named.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        text = f"{path}: cannot be read: {error.strerror}; give --factors a TOML file"
        raise ConfigError(text) from error
    except UnicodeDecodeError as error:
        text = f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8"
        raise ConfigError(text) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    problems = Problems(str(path))
    file = read_struct(FactorsFile, data, "", problems) or FactorsFile()
    _check(file, problems)
    problems.raise_if_any()
    return file


def _check(file: FactorsFile, problems: Problems) -> None:
    if file.intensity.file is not None and file.intensity.command:
        problems.add("intensity", "sets both `file` and `command`: keep one")
    if (file.price or file.electricity_per_kwh is not None) and not file.currency:
        problems.add("currency", "is missing, but there are prices: name it, such as EUR")
    _no_negatives([("electricity_per_kwh", file.electricity_per_kwh)], problems)
    for index, price in enumerate(file.price):
        key = f"price[{index}]"
        values = {"prompt": price.prompt, "cached": price.cached, "output": price.output}
        _no_negatives(((f"{key}.{name}", value) for name, value in values.items()), problems)
    _no_twins([(price.listener, price.model) for price in file.price], "price", problems)
    for index, site in enumerate(file.site):
        if not 1 <= site.pue <= 10:
            problems.add(f"site[{index}].pue", f"is {site.pue:g}: a site has 1 or more, to 10")
    _no_twins([site.zone for site in file.site], "site", problems)
    for index, made in enumerate(file.embodied):
        key = f"embodied[{index}]"
        values = {"device_kg": made.device_kg, "server_kg": made.server_kg}
        _no_negatives(((f"{key}.{name}", value) for name, value in values.items()), problems)
        if made.devices_per_server < 1:
            problems.add(
                f"{key}.devices_per_server", f"is {made.devices_per_server}: use 1 or more"
            )
        if not 0 < made.life_years < math.inf:
            problems.add(f"{key}.life_years", f"is {made.life_years:g}: use a number above 0")
        if not made.match:
            problems.add(f"{key}.match", "is empty: write a part of the device's name")


def _no_negatives(values: Iterable[tuple[str, float | None]], problems: Problems) -> None:
    for key, value in values:
        if value is not None and not 0 <= value < math.inf:
            problems.add(key, f"is {value:g}: use 0 or more")


def _no_twins(places: list[object], table: str, problems: Problems) -> None:
    for index, place in enumerate(places):
        first = places.index(place)
        if first < index:
            problems.add(f"{table}[{index}]", f"is of the same as {table}[{first}]: keep one")
