"""How long one engine step, and one handoff, takes."""

from dataclasses import dataclass

from nodeserve.errors import ConfigError
from nodeserve.perf_model.profile import SMALL_STEP_TOKENS, Profile


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one engine step computes.

    ``prefill_tokens`` are new prompt tokens, ``decoding`` the requests that get one token each.
    ``prefill_pairs`` are query-key pairs: a chunk of ``c`` tokens after ``p`` computed ones has
    ``c * (p + c / 2)``. ``context_tokens`` is the context of all decoding requests together.
    """

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decoding: int = 0
    context_tokens: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the step computes nothing."""
        return self.prefill_tokens + self.decoding == 0


def step_s(profile: Profile, work: StepWork) -> float:
    """Return the duration of one engine step, in seconds.

    With x = prefill tokens + decoding requests, in ms:

        t = overhead + decode_scale * (g(min(x, 256)) + d2 * context_tokens)
                     + prefill_scale * (g(x) - g(min(x, 256)) + p2 * prefill_pairs)

    g is the profile's ``linear_ms``; p2 and d2 are its ``pair_ns`` and ``context_token_ns``.
    An empty step takes no time.

    Source: a fit to AIConfigurator 0.12's kernel database, whose scales and overhead are fitted
    to InferenceX measurements (TPOT 3.8 %, TTFT 8.9 % mean error on held-out rows).
    """
    if work.is_empty:
        return 0.0
    tokens = work.prefill_tokens + work.decoding
    small_ms = profile.linear_ms(min(tokens, SMALL_STEP_TOKENS))
    decode_ms = small_ms + profile.context_token_ns * 1e-6 * work.context_tokens
    prefill_ms = profile.linear_ms(tokens) - small_ms + profile.pair_ns * 1e-6 * work.prefill_pairs
    total_ms = (
        profile.overhead_ms + profile.decode_scale * decode_ms + profile.prefill_scale * prefill_ms
    )
    return total_ms / 1e3


@dataclass(frozen=True, slots=True)
class Link:
    """What carries KV between two workers of one node: ``setup_s`` + bytes / bandwidth."""

    setup_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        """Refuse a link that would never end or end before it began."""
        if self.bytes_per_s <= 0 or self.setup_s < 0:
            raise ConfigError(
                f"link: setup {self.setup_s:g} s at {self.bytes_per_s:g} bytes/s is impossible; "
                "give a setup of at least 0 s and a bandwidth above 0"
            )

    def transfer_s(self, num_bytes: int) -> float:
        """Return how long it takes to pull ``num_bytes`` of KV; nothing takes no time."""
        if num_bytes == 0:
            return 0.0
        return self.setup_s + num_bytes / self.bytes_per_s
