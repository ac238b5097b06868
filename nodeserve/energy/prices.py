"""What tokens and electricity cost, by prices that the operator has set."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from nodeserve.energy.rows import TokenRow
from nodeserve.energy.sci import Pue
from nodeserve.energy.units import kilowatt_hours, millionths
from nodeserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Prices of a million tokens each. None as listener or model stands for every one.

    ``cached`` is the price of prompt tokens that were found in a cache, ``prompt`` that of the
    others. Scrap tokens cost nothing: nobody ordered them.
    """

    listener: str | None = None
    model: str | None = None
    prompt: Fraction
    cached: Fraction
    output: Fraction

    def __post_init__(self) -> None:
        """Refuse what is no price."""
        for name in ("prompt", "cached", "output"):
            if getattr(self, name) < 0:
                raise ConfigError(f"price of {name} tokens is {getattr(self, name)}: use 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """All prices. ``electricity_per_kwh`` is what the site pays; None where that is not known.

    Raises:
        ConfigError: Two prices are of the same listener and model.
    """

    currency: str
    prices: Sequence[Price] = ()
    electricity_per_kwh: Fraction | None = None

    def __post_init__(self) -> None:
        """Refuse two prices for the same thing."""
        seen = [(price.listener, price.model) for price in self.prices]
        for place in seen:
            if seen.count(place) > 1:
                raise ConfigError(
                    f"prices: listener {place[0] or 'any'} and model {place[1] or 'any'} have "
                    f"{seen.count(place)} prices; keep one"
                )

    def find(self, listener: str, model: str) -> Price | None:
        """Return the price of the listener's requests to the model; the closest one wins.

        Both are named, then the listener alone, then the model alone, then neither. None where
        there is none: the cost is not known then.
        """
        for place in ((listener, model), (listener, None), (None, model), (None, None)):
            for price in self.prices:
                if (price.listener, price.model) == place:
                    return price
        return None

    def cost_of(self, row: TokenRow) -> Fraction | None:
        """Return what the row's tokens cost, in millionths of the currency; None if not known."""
        price = self.find(row.listener, row.model)
        if price is None:
            return None
        # A price per million tokens is millionths of the currency per token.
        return (
            (row.prompt_tokens - row.cached_tokens) * price.prompt
            + row.cached_tokens * price.cached
            + row.output_tokens * price.output
        )

    def electricity(self, energy_mj: int, pue: Pue) -> Fraction | None:
        """Return what the energy and the site's share cost, in millionths; None if not known."""
        if self.electricity_per_kwh is None:
            return None
        return millionths(kilowatt_hours(energy_mj) * pue.value * self.electricity_per_kwh)
