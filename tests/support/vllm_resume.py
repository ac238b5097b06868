"""What tests of resuming ask of the installed vLLM, in a process that has it loaded."""

from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from nodeserve.engine.vllm import resume_runner
from nodeserve.wire.engine_core import RESUMED

VOCAB_SIZE, NUM_TOKENS, SEED = 307, 29, 11


def compare_draws(pipe: Connection) -> None:
    """Answer, by kernel, whether ours leave a generator as that many samples of vLLM's do."""
    answers = {}
    for name, use_fp64 in (
        ("forward_cpu", False),
        ("forward_cpu", True),
        ("forward_native", False),
    ):
        sampler = TopKTopPSampler("raw_logprobs", use_fp64)
        sampler.forward = getattr(sampler, name)
        theirs, ours = (torch.Generator().manual_seed(SEED) for _ in range(2))
        for _ in range(NUM_TOKENS):
            # A neighbour in the batch, with a generator of its own, must make no difference.
            generators = {0: torch.Generator().manual_seed(1), 1: theirs}
            sampler.forward(torch.zeros(3, VOCAB_SIZE), generators, None, None)
        resume_runner.draw_for(sampler, VOCAB_SIZE, torch.device("cpu"))(ours, NUM_TOKENS)
        answers[name, use_fp64] = torch.equal(theirs.get_state(), ours.get_state())
    pipe.send(answers)


def install_twice(pipe: Connection) -> None:
    """Answer what is installed in a bare V1 runner, an unknown one and a second time."""
    runner = object.__new__(CPUModelRunner)
    runner.requests = {}
    runner.device = torch.device("cpu")
    runner.model_config = SimpleNamespace(get_vocab_size=lambda: VOCAB_SIZE)
    runner.sampler = SimpleNamespace(topk_topp_sampler=TopKTopPSampler())
    worker = SimpleNamespace(model_runner=runner)
    first = resume_runner.install(worker)
    requests = runner.requests
    second = resume_runner.install(worker)
    pipe.send(
        {
            "first": first,
            "second": second,
            "is_ours": type(requests).__name__,
            "is_same": runner.requests is requests,
            "v2": resume_runner.install(SimpleNamespace(model_runner=_v2_runner())),
            "unknown": resume_runner.install(SimpleNamespace(model_runner=object())),
            "is_v1": issubclass(CPUModelRunner, GPUModelRunner),
        }
    )


def enter_requests(pipe: Connection) -> None:
    """Answer how a request's state stands once it is entered, resumed and seeded or not."""
    draw = resume_runner.draw_for(TopKTopPSampler(), VOCAB_SIZE, torch.device("cpu"))
    requests = resume_runner.RestoringRequests({}, draw)
    plain, resumed = _state("plain", []), _state("resumed", [5, 6, 7])
    requests["plain"], requests["resumed"] = plain, resumed
    after_three = torch.Generator().manual_seed(SEED)
    draw(after_three, 3)
    at_three = resumed.generator.get_state()
    draw(resumed.generator, 1)
    resumed.generator.set_offset(resumed.generator.get_offset() - 4)
    pipe.send(
        {
            "plain": plain.output_token_ids,
            "resumed": resumed.output_token_ids,
            "positions": resumed.num_tokens,
            "is_fresh": torch.equal(
                plain.generator.get_state(), torch.Generator().manual_seed(SEED).get_state()
            ),
            "is_forwarded": torch.equal(at_three, after_three.get_state()),
            "is_undone": torch.equal(resumed.generator.get_state(), at_three),
        }
    )


def _state(request_id: str, restored: list[int]) -> CachedRequestState:
    return CachedRequestState(
        req_id=request_id,
        prompt_token_ids=[1, 2],
        mm_features=[],
        sampling_params=SamplingParams(seed=SEED, extra_args={RESUMED: restored}),
        generator=torch.Generator().manual_seed(SEED),
        block_ids=([],),
        num_computed_tokens=0,
        output_token_ids=[],
    )


def _v2_runner() -> Any:
    # As near as a machine without Triton comes to it.
    base = type("GPUModelRunner", (), {"__module__": resume_runner.V2_MODULE})
    return type("Derived", (base,), {})()
