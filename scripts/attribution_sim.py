"""A synthetic engine on one GPU whose true energy per request is known: its Shapley value.

An 8 billion parameter model in bf16 on a roofline like an H100's, with continuous batching:
decoding first, chunks of prompts after, as vLLM does it. A step's energy is that of a device that
is busy for its time, and of its operations; both scatter about the model. Truth and rules share
this linear model, so it ranks rules, and does not predict what they are off by on hardware.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WEIGHT_BYTES: Final = 16e9
KV_BYTES: Final = 131_072.0
TOKEN_FLOPS: Final = 16e9
PAIR_FLOPS: Final = 524_288.0
FLOPS_PER_S: Final = 593e12
"""What the device reaches of its peak of 989e12."""
BYTES_PER_S: Final = 2.68e12
"""What it reaches of its peak of 3.35e12."""
OVERHEAD_S: Final = 1e-3

ORDERS: Final = 120
"""Orders of a step's requests that are sampled; the standard error of a large batch's shares is
then below 1 %, and averages out over steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the device draws: watts while busy, watts when idle, joules per FLOP and per byte."""

    busy_w: float = 120.0
    idle_w: float = 70.0
    joules_per_flop: float = 0.98e-12
    joules_per_byte: float = 86e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the engine, and how far its steps scatter about the model.

    ``time_noise`` is of a step's time, which the engine sees; ``energy_noise`` of its energy on
    top, which nobody does. Both are standard deviations of the logarithm.
    """

    name: str
    requests_per_s: float
    num_requests: int = 400
    mode: str = "mixed"
    max_batch: int = 64
    token_budget: int = 2048
    time_noise: float = 0.15
    energy_noise: float = 0.05
    seed: int = 7


@dataclass(slots=True)
class Step:
    """One step: who computes how many tokens behind which context, as chunk or not."""

    begin_s: float
    seconds: float
    joules: float
    requests: Ints
    tokens: Ints
    contexts: Ints
    chunks: npt.NDArray[np.bool_]
    shares_j: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(slots=True)
class Trace:
    """A run of the engine: its steps, and what each request truly used, in J above idle."""

    steps: list[Step]
    prompts: Ints
    outputs: Ints
    spans_s: list[tuple[float, float]]
    truth_j: Floats
    end_s: float

    @property
    def mean_batch(self) -> float:
        """Requests per step."""
        return float(np.mean([len(step.requests) for step in self.steps]))


def seconds_of(tokens: Ints, contexts: Ints) -> tuple[Floats, Floats]:
    """Return each one's seconds of computing and of memory in a step."""
    pairs = tokens * (contexts + (tokens + 1) / 2)
    flops = TOKEN_FLOPS * tokens + PAIR_FLOPS * pairs
    compute_s: Floats = flops / FLOPS_PER_S
    memory_s: Floats = (KV_BYTES * (contexts + tokens) / BYTES_PER_S).astype(np.float64)
    return compute_s, memory_s


def run(load: Load, device: Device) -> Trace:
    """Run the engine until every request has its answer."""
    random = np.random.default_rng(load.seed)
    count = load.num_requests
    arrivals = np.cumsum(random.exponential(1 / load.requests_per_s, count))
    prompts = np.clip(random.lognormal(6.3, 1.1, count), 16, 16_000).astype(int)
    outputs = np.clip(random.lognormal(4.9, 0.9, count), 4, 2000).astype(int)
    if load.mode == "prefill":
        outputs = np.ones(count, int)
    computed = prompts.copy() if load.mode == "decode" else np.zeros(count, int)
    made = np.zeros(count, int)
    live: list[int] = []
    waiting = list(range(count))
    steps: list[Step] = []
    ends = np.zeros(count)
    now_s = 0.0
    while waiting or live:
        if not live and arrivals[waiting[0]] > now_s:
            now_s = float(arrivals[waiting[0]])
        while waiting and len(live) < load.max_batch and arrivals[waiting[0]] <= now_s:
            live.append(waiting.pop(0))
        step = _schedule(live, prompts, computed, made, load.token_budget)
        step.begin_s = now_s
        _draw(step, load, device, random)
        now_s += step.seconds
        steps.append(step)
        for request, tokens, is_chunk in zip(step.requests, step.tokens, step.chunks, strict=True):
            if is_chunk:
                computed[request] += tokens
                made[request] += computed[request] >= prompts[request]
            else:
                made[request] += 1
            ends[request] = now_s
        live = [request for request in live if made[request] < outputs[request]]
    truth_j = np.zeros(count)
    for step in steps:
        truth_j[step.requests] += step.shares_j
    spans = list(zip(arrivals.tolist(), ends.tolist(), strict=True))
    return Trace(steps, prompts, outputs, spans, truth_j, now_s)


def _schedule(live: list[int], prompts: Ints, computed: Ints, made: Ints, budget: int) -> Step:
    rows: list[tuple[int, int, int, bool]] = []
    for request in live:
        if computed[request] >= prompts[request] and budget > 0:
            rows.append((request, 1, int(prompts[request] + made[request]), False))
            budget -= 1
    for request in live:
        left = int(prompts[request] - computed[request])
        if left > 0 and budget > 0:
            rows.append((request, min(left, budget), int(computed[request]), True))
            budget -= rows[-1][1]
    requests, tokens, contexts, chunks = (np.array(column) for column in zip(*rows, strict=True))
    return Step(0.0, 0.0, 0.0, requests, tokens, contexts, chunks)


def _draw(step: Step, load: Load, device: Device, random: np.random.Generator) -> None:
    """Let a step take its time and energy, and say what each request truly caused of it."""
    compute_s, memory_s = seconds_of(step.tokens, step.contexts)
    model_s = _step_s(compute_s.sum(), memory_s.sum())
    slower = random.lognormal(0.0, load.time_noise)
    dearer = random.lognormal(0.0, load.energy_noise)
    step.seconds = float(model_s * slower)
    orders = np.argsort(random.random((ORDERS, len(compute_s))), axis=1)
    sums = (np.cumsum(compute_s[orders], axis=1), np.cumsum(memory_s[orders], axis=1))
    static_j = device.busy_w * slower * _step_s(*sums)
    moved_j = (sums[1] * BYTES_PER_S + WEIGHT_BYTES) * device.joules_per_byte
    total_j = static_j + sums[0] * FLOPS_PER_S * device.joules_per_flop + moved_j
    added_j = np.diff(total_j, axis=1, prepend=0.0)
    shares_j = np.zeros(len(compute_s))
    np.add.at(shares_j, orders.ravel(), added_j.ravel())
    step.shares_j = shares_j / ORDERS * dearer
    step.joules = float(step.shares_j.sum())


def _step_s(compute_s: Floats, memory_s: Floats) -> Floats:
    weights_s = WEIGHT_BYTES / BYTES_PER_S
    longest: Floats = np.maximum(compute_s, memory_s + weights_s) + OVERHEAD_S
    return longest
