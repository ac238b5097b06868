"""The numbers behind a step's duration: named data, each with its source."""

import bisect
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nodeserve.errors import ConfigError

SMALL_STEP_TOKENS: Final = 256
"""Up to here a step is bound by reading weights; the part beyond scales as prefill does."""


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """What a profile was measured for."""

    model: str
    gpu: str
    tp: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one TP group; used by ``latency.step_s``.

    Attributes:
        name: For people, for example ``llama70b-fp8 on 4 h100-sxm``.
        source: Where the numbers come from.
        knot_tokens: Tokens per step at which the linear part is known, ascending, at least two.
        knot_ms: The linear part's duration there, in ms: everything but attention.
        pair_ns: Attention of the prefill, in ns per query-key pair.
        context_token_ns: Attention of decode, in ns per context token.
        prefill_scale: Calibration of the part beyond ``SMALL_STEP_TOKENS``.
        decode_scale: Calibration of the rest.
        overhead_ms: Per step, whatever it computes.
        kv_bytes_per_token: KV of one token over all layers and all ranks.
        weight_bytes: Resident weights over all ranks.
    """

    name: str
    source: str
    knot_tokens: tuple[int, ...]
    knot_ms: tuple[float, ...]
    pair_ns: float
    context_token_ns: float
    prefill_scale: float
    decode_scale: float
    overhead_ms: float
    kv_bytes_per_token: int
    weight_bytes: int

    def __post_init__(self) -> None:
        """Refuse knots that no line can be drawn through."""
        steps = zip(self.knot_tokens, self.knot_tokens[1:], strict=False)
        ascending = all(left < right for left, right in steps)
        if len(self.knot_tokens) < 2 or len(self.knot_tokens) != len(self.knot_ms) or not ascending:
            raise ConfigError(
                f"profile {self.name}: {len(self.knot_tokens)} knots with {len(self.knot_ms)} "
                "times; give at least two ascending knots and one time for each"
            )

    def linear_ms(self, tokens: int) -> float:
        """Return g(tokens): straight lines between knots, the last slope beyond the last one."""
        xs, ys = self.knot_tokens, self.knot_ms
        right = min(max(bisect.bisect_left(xs, tokens), 1), len(xs) - 1)
        left = right - 1
        slope = (ys[right] - ys[left]) / (xs[right] - xs[left])
        return ys[left] + slope * (tokens - xs[left])


def parse_profiles(text: str, source: str) -> dict[ProfileKey, Profile]:
    """Return the profiles in the text of a knots file.

    Lines beginning with ``#`` are comments. The first other line names the columns: ``model``,
    ``gpu``, ``tp``, ``g<tokens>`` in ms, and the remaining fields of Profile by name.

    Args:
        text: The file's content.
        source: Where its numbers come from.

    Raises:
        ConfigError: A column is missing or a value is not a number.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    profiles = {}
    for row in csv.DictReader(lines):
        try:
            key = ProfileKey(row["model"], row["gpu"], int(row["tp"]))
            profiles[key] = _profile(key, row, source)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"step-time data: row {row} lacks or garbles {error}") from error
    return profiles


def _profile(key: ProfileKey, row: Mapping[str, str], source: str) -> Profile:
    knots = sorted((int(name[1:]), float(row[name])) for name in row if _is_knot(name))
    return Profile(
        name=f"{key.model} on {key.tp} {key.gpu}",
        source=source,
        knot_tokens=tuple(tokens for tokens, _ in knots),
        knot_ms=tuple(ms for _, ms in knots),
        pair_ns=float(row["pair_ns"]),
        context_token_ns=float(row["context_token_ns"]),
        prefill_scale=float(row["prefill_scale"]),
        decode_scale=float(row["decode_scale"]),
        overhead_ms=float(row["overhead_ms"]),
        kv_bytes_per_token=int(row["kv_bytes_per_token"]),
        weight_bytes=int(row["weight_bytes"]),
    )


def _is_knot(column: str) -> bool:
    return column.startswith("g") and column[1:].isdigit()
