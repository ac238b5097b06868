"""One line of a report: sums, and the figures that follow from them.

None is what is not known, or has no meaning for the line; it is never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from nodeserve.energy.carbon import CarbonFigure
from nodeserve.energy.ledger_rows import Column
from nodeserve.energy.sci import sci_g_per_million
from nodeserve.energy.units import amount, grams, joules, per_million, per_thousand
from nodeserve.wire.kinds import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSums:
    """Tokens of requests that ended. ``prompt`` includes ``cached``.

    ``unmetered`` are those of hours in which their node metered nothing: what energy they took is
    not known. ``unpriced`` are those without a price.
    """

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    scrap: int = 0
    unmetered: int = 0
    unpriced: int = 0

    def plus(self, other: "TokenSums") -> "TokenSums":
        """Return both together."""
        return TokenSums(
            requests=self.requests + other.requests,
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            output=self.output + other.output,
            scrap=self.scrap + other.scrap,
            unmetered=self.unmetered + other.unmetered,
            unpriced=self.unpriced + other.unpriced,
        )

    @property
    def served(self) -> int:
        """Prompt and output tokens, which clients sent and got."""
        return self.prompt + self.output

    @property
    def computed_prompt(self) -> int:
        """Prompt tokens that no cache held."""
        return self.prompt - self.cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What workers of one role did: their useful energy and the tokens that they computed."""

    useful_mj: int
    tokens: TokenSums

    def j_per(self, count: int) -> Fraction | None:
        """Return J per token; None where there is none, or some have no metered energy."""
        if count <= 0 or self.tokens.unmetered:
            return None
        return joules(self.useful_mj) / count


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The sums of one listener, model, role, GPU, hour, node or zone.

    ``energy`` is in mJ by what it was spent on; None where nothing was metered. ``tokens`` is None
    where tokens cannot be told apart, as by GPU. ``seconds`` is the time for rates.
    ``is_estimate``: a part of the energy is no counter's.
    ``embodied_ug`` is None where the making of a device is not known. Money is in millionths.
    """

    name: str
    seconds: float
    tokens: TokenSums | None
    energy: Mapping[Column, int] | None
    is_estimate: bool
    phases: Mapping[str, Phase]
    carbon: CarbonFigure | None
    embodied_ug: int | None
    cost: int | None
    electricity_cost: int | None

    def part_mj(self, column: Column) -> int | None:
        """Return the energy that was spent on one thing."""
        return None if self.energy is None else self.energy[column]

    @property
    def metered_mj(self) -> int | None:
        """All of it."""
        return None if self.energy is None else sum(self.energy.values())

    @property
    def active_mj(self) -> int | None:
        """What requests have used above idle, scrap included."""
        if self.energy is None:
            return None
        return self.energy[Column.USEFUL] + self.energy[Column.SCRAP]

    @property
    def settled_mj(self) -> int | None:
        """What was used or provisioned: all but what is in quarantine."""
        if self.energy is None:
            return None
        return sum(self.energy.values()) - self.energy[Column.QUARANTINE]

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens served per second of the report's hours."""
        if self.tokens is None or self.seconds <= 0:
            return None
        return self.tokens.served / self.seconds

    @property
    def j_per_token(self) -> Fraction | None:
        """Energy above idle, scrap included, per token served."""
        return self._j_per(self.active_mj, self.tokens.served if self.tokens else 0)

    @property
    def j_per_output_token(self) -> Fraction | None:
        """The same per output token, as most publications have it."""
        return self._j_per(self.active_mj, self.tokens.output if self.tokens else 0)

    @property
    def settled_j_per_token(self) -> Fraction | None:
        """Energy with its share of what the node drew idle, per token served."""
        return self._j_per(self.settled_mj, self.tokens.served if self.tokens else 0)

    @property
    def prefill_j_per_token(self) -> Fraction | None:
        """Useful energy of prefill workers per prompt token that they computed."""
        phase = self.phases.get(Role.PREFILL.value)
        return None if phase is None else phase.j_per(phase.tokens.computed_prompt)

    @property
    def decode_j_per_token(self) -> Fraction | None:
        """Useful energy of decode workers per token that they generated.

        Short prompts that they computed themselves are in it.
        """
        phase = self.phases.get(Role.DECODE.value)
        return None if phase is None else phase.j_per(phase.tokens.output)

    @property
    def g_per_1k_tokens(self) -> Fraction | None:
        """Operational carbon in g per thousand tokens served."""
        if not self._can_divide or self.carbon is None or self.tokens is None:
            return None
        return per_thousand(grams(self.carbon.mass_ug), self.tokens.served)

    @property
    def sci_g_per_million_tokens(self) -> Fraction | None:
        """SCI: operational and embodied carbon in g per million tokens served."""
        if not self._can_divide or self.carbon is None or self.tokens is None:
            return None
        if self.embodied_ug is None:
            return None
        operational, embodied = grams(self.carbon.mass_ug), grams(self.embodied_ug)
        return sci_g_per_million(operational, embodied, self.tokens.served)

    @property
    def cost_per_million_tokens(self) -> Fraction | None:
        """What a million tokens served cost by the configured prices, prompt and output mixed."""
        return self._per_million(self.cost)

    @property
    def electricity_per_million_tokens(self) -> Fraction | None:
        """What the electricity for a million tokens served cost, with the site's share."""
        return self._per_million(self.electricity_cost) if self._can_divide else None

    @property
    def _can_divide(self) -> bool:
        tokens = self.tokens
        return tokens is not None and tokens.served > 0 and not tokens.unmetered

    def _j_per(self, energy_mj: int | None, count: int) -> Fraction | None:
        if energy_mj is None or count <= 0 or not self._can_divide:
            return None
        return joules(energy_mj) / count

    def _per_million(self, cost: int | None) -> Fraction | None:
        if cost is None or self.tokens is None or not self.tokens.served:
            return None
        return per_million(amount(cost), self.tokens.served)
