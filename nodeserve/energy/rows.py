"""What a ledger can be asked for: the rows that reports are made of, one per hour and place.

``hour_unix_s`` is when the hour began. Energy is in integer mJ. ``node`` and ``zone`` say whose
ledger it was, so that rows of several ledgers can be put together.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """Energy above idle that requests have used, on one meter, by workers of one role.

    ``scrap_mj`` is what was thrown away or computed again, beside ``useful_mj``.
    """

    node: str
    zone: str
    hour_unix_s: int
    listener: str
    model: str
    role: str
    meter: str
    useful_mj: int
    scrap_mj: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRow:
    """One meter's hour: ``metered_mj`` is the sum of the other three.

    ``metered_s`` is how long it was metered, ``estimated_mj`` how much of it is no counter's.
    """

    node: str
    zone: str
    hour_unix_s: int
    meter: str
    kind: str
    name: str
    metered_mj: int
    allocated_mj: int
    idle_mj: int
    quarantine_mj: int
    metered_s: float
    estimated_mj: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Tokens of requests that ended in the hour, by listener, model and role of the worker.

    Prompt tokens (``cached_tokens`` among them) are under the role that computed the prompt,
    output tokens under the role that generated; ``requests`` under the latter.
    """

    node: str
    zone: str
    hour_unix_s: int
    listener: str
    model: str
    role: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    scrap_tokens: int
