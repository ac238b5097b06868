"""What one request takes of the node's GPUs, as one number that requests can be compared by."""

from dataclasses import dataclass
from typing import Final

from nodeserve.perf_model.latency import StepWork, step_s
from nodeserve.perf_model.profile import Profile

PREFILL_STEP_TOKENS: Final = 4096
DECODE_BATCH: Final = 64
CONTEXT_TOKENS: Final = 1024
"""The steps that a token's share is taken of: a busy node's. A lone request costs more each."""


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Modelled GPU seconds of one uncached prompt token, and of one output token.

    The defaults, rounded, are those of Llama-70B FP8 on two to four H100: they stand for models
    and GPUs of which nothing is known. What counts between listeners is the ratio, which is 4
    to 7 for all that is known.
    """

    prompt_token_s: float = 2.0e-4
    output_token_s: float = 8.0e-4

    @classmethod
    def of(cls, profile: Profile, tp: int) -> "RequestCost":
        """Return the shares of a prefill step and of a decode step of ``tp`` GPUs."""
        pairs = PREFILL_STEP_TOKENS * PREFILL_STEP_TOKENS / 2
        prefill = StepWork(prefill_tokens=PREFILL_STEP_TOKENS, prefill_pairs=pairs)
        decode = StepWork(decoding=DECODE_BATCH, context_tokens=DECODE_BATCH * CONTEXT_TOKENS)
        return cls(
            prompt_token_s=tp * step_s(profile, prefill) / PREFILL_STEP_TOKENS,
            output_token_s=tp * step_s(profile, decode) / DECODE_BATCH,
        )


TYPICAL: Final = RequestCost()
"""What requests are charged by where nothing better is known."""
