"""Requests that continue where another engine stopped: the sampler's half, by model runner.

``install`` runs in every rank's process, once its model is loaded. What each of vLLM's model
runners (0.32) needs:

V1 (vllm/v1/worker/gpu_model_runner.py; CPU, and CUDA where V2 lacks a feature) starts every
request without outputs and with a fresh random generator. ``RestoringRequests`` takes the place
of the runner's ``requests`` and completes each state as it is entered.

V2 (vllm/v1/worker/gpu/model_runner.py) needs nothing. It has no other way to resume a preempted
request than to start it anew, so that prompt and restored tokens come apart already
(``NewRequestData.prefill_token_ids``) and sampling noise is a function of seed and position.
This is read from its source, and held by the contract test; it has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, Self

import torch
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from nodeserve.engine.vllm.resume import resumed_tokens

V2_MODULE: Final = "vllm.v1.worker.gpu.model_runner"
"""Not imported: it needs Triton."""

Draw = Callable[[torch.Generator, int], None]
"""Draws from a generator what the sampler draws for that many tokens of one request."""


class _HasRunner(Protocol):
    model_runner: Any


def install(worker: _HasRunner) -> bool:
    """Make a rank's model runner restore resumed requests; return whether it can.

    Idempotent. Changes only the runner's own attribute ``requests``.

    Args:
        worker: vLLM's, as ``collective_rpc`` passes it.
    """
    runner = worker.model_runner
    if isinstance(runner, GPUModelRunner):
        if not isinstance(runner.requests, RestoringRequests):
            runner.requests = RestoringRequests(runner.requests, draw_of(runner))
        return True
    return any(base.__module__ == V2_MODULE for base in type(runner).__mro__)


def draw_of(runner: GPUModelRunner) -> Draw:
    """Return how the runner's sampler uses a request's own generator, token by token."""
    sampler = runner.sampler.topk_topp_sampler
    return draw_for(sampler, runner.model_config.get_vocab_size(), runner.device)


def draw_for(sampler: TopKTopPSampler, vocab_size: int, device: torch.device) -> Draw:
    """Return how ``sampler`` uses a request's own generator.

    Source: ``forward_cpu`` and ``random_sample`` in vllm/v1/sample/ops/topk_topp_sampler.py.
    The other kernels leave requests with a generator to ``random_sample``.
    """
    if sampler.forward == sampler.forward_cpu and not sampler.use_fp64_gumbel:
        return _draw_noise_seeds
    dtype = torch.float64 if sampler.use_fp64_gumbel else torch.float32
    row = torch.empty(vocab_size, dtype=dtype, device=device)

    def draw_rows(generator: torch.Generator, num_tokens: int) -> None:
        for _ in range(num_tokens):
            row.exponential_(generator=generator)

    return draw_rows


class RestoringRequests(dict[str, CachedRequestState]):
    """The V1 runner's requests; one that is resumed enters as if it had been here all along."""

    def __init__(self, requests: dict[str, CachedRequestState], draw: Draw) -> None:
        """Take over ``requests``, and ``draw`` as the runner's sampler does."""
        super().__init__(requests)
        self._draw = draw

    def __setitem__(self, request_id: str, state: CachedRequestState) -> None:
        """Enter a new request, which no batch holds yet."""
        tokens = resumed_tokens(state.sampling_params)
        state.output_token_ids.extend(tokens)
        if state.generator is not None:
            if state.generator.device.type == "cpu":
                state.generator = PositionedGenerator(state, self._draw)
            else:
                self._draw(state.generator, len(tokens))
        super().__setitem__(request_id, state)


class PositionedGenerator(torch.Generator):
    """A seeded request's generator on the CPU, which can go back to its request's position.

    The V1 runner draws for a prompt's partial chunks too, and takes that back by the
    generator's offset. CPU generators have none: vLLM's own ends the engine there.
    """

    def __new__(cls, *_: object) -> Self:
        """Make torch's part, which takes nothing but a device."""
        return super().__new__(cls, device="cpu")

    def __init__(self, state: CachedRequestState, draw: Draw) -> None:
        """Stand where the sampler is after ``state``'s output tokens.

        Args:
            state: Its generator has the request's seed, which it had from the beginning.
            draw: As the runner's sampler does.
        """
        super().__init__()
        self._state = state
        self._draw = draw
        self._seed = state.generator.initial_seed()
        self.set_offset(0)

    def get_offset(self) -> int:
        """Return any number: only ``set_offset`` knows the position."""
        return 0

    def set_offset(self, _: int) -> None:
        """Go back to where the sampler is after the request's output tokens so far."""
        self.manual_seed(self._seed)
        self._draw(self, len(self._state.output_token_ids))


def _draw_noise_seeds(generator: torch.Generator, num_tokens: int) -> None:
    # As many numbers in one call leave the generator as one call for each.
    torch.randint(0, 2**31, (num_tokens,), generator=generator, dtype=torch.long)
