"""What resuming relies on in vLLM's model runners; the first to fail when vLLM changes it.

The V2 runner does not load without Triton, so what is said of it is read from its source.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import vllm_entry

pytestmark = pytest.mark.vllm

V1_RUNNER = "v1/worker/gpu_model_runner.py"
V2_RUNNER = "v1/worker/gpu/model_runner.py"
V2_SAMPLER = "v1/worker/gpu/sample/sampler.py"


@pytest.fixture
def ask(vllm_context):
    def call(check):
        ours, theirs = vllm_context.Pipe()
        process = vllm_context.Process(target=vllm_entry.check_resume, args=(check, theirs))
        process.start()
        theirs.close()
        assert ours.poll(60)
        answer = ours.recv()
        process.join(15)
        return answer

    return call


def source(path: str) -> Path:
    return Path(str(find_spec("vllm").origin)).parent / path


def function(path: str, name: str) -> str:
    """Return a function's code, or a method's as ``Class.name``, in one spelling."""
    node: ast.AST = ast.parse(source(path).read_text())
    for part in name.split("."):
        inner = [n for n in ast.walk(node) if getattr(n, "name", None) == part]
        assert inner, f"{path} has no {name} any more"
        node = inner[0]
    return ast.unparse(node)


# ------------------------------------------------------------------------------- V1 runner


def test_draws_are_those_of_every_kernel_that_has_a_generator_per_request(ask) -> None:
    answers = ask("compare_draws")
    assert answers == dict.fromkeys(answers, True)
    assert len(answers) == 3


def test_v1_runner_is_completed_once_and_an_unknown_one_refused(ask) -> None:
    assert ask("install_twice") == {
        "first": True,
        "second": True,
        "is_ours": "RestoringRequests",
        "is_same": True,
        "v2": True,
        "unknown": False,
        "is_v1": True,
    }


def test_resumed_state_stands_where_it_would_after_its_tokens(ask) -> None:
    assert ask("enter_requests") == {
        "plain": [],
        "resumed": [5, 6, 7],
        "positions": 5,
        "is_fresh": True,
        "is_forwarded": True,
        "is_undone": True,
    }


def test_v1_runner_enters_a_state_before_any_batch_reads_it() -> None:
    code = function(V1_RUNNER, "GPUModelRunner._update_states")
    entered = code.index("self.requests[req_id] = req_state")
    assert code.count("self.requests[req_id] = ") == 1
    assert code.index("req_state = CachedRequestState(") < entered
    assert entered < code.index("self.input_batch.add_request(")
    assert source(V1_RUNNER).read_text().count("self.requests: dict[") == 1


def test_v1_runner_takes_a_draw_back_by_the_offset_alone() -> None:
    code = source(V1_RUNNER).read_text()
    assert code.count("gen.set_offset(gen.get_offset() - 4)") == code.count("set_offset(") == 1


def test_v1_sampler_leaves_requests_with_generators_to_known_kernels() -> None:
    path = "v1/sample/ops/topk_topp_sampler.py"
    cuda = function(path, "TopKTopPSampler.forward_cuda")
    assert "if k is None and p is None or generators:" in cuda
    assert "return self.forward_native(logits, generators, k, p)" in cuda
    native = function(path, "TopKTopPSampler.forward_native")
    assert "random_sample(probs, generators, self.use_fp64_gumbel)" in native


# ------------------------------------------------------------------------------- V2 runner


def test_v2_runner_is_told_restored_tokens_apart_from_the_prompt() -> None:
    schedule = function("v1/core/sched/scheduler.py", "Scheduler.schedule")
    assert "req_to_new_blocks[req.request_id].get_block_ids(), req._all_token_ids," in schedule
    # It resumes preempted requests in no other way than it starts new ones.
    assert "scheduled_new_reqs.extend(scheduled_resumed_reqs)" in schedule
    add = function(V2_RUNNER, "GPUModelRunner.add_requests")
    assert "prompt_len = new_req_data.prompt_len" in add
    assert "all_token_ids=new_req_data.prefill_token_ids" in add
    state = function("v1/worker/gpu/states.py", "RequestState.add_request")
    assert "self.prompt_len.np[req_idx] = prompt_len" in state
    assert "self.prefill_len.np[req_idx] = prefill_len" in state
    assert "self.max_seq_len[req_idx] = prompt_len + max_tokens" in state


def test_v2_noise_is_a_function_of_seed_and_position() -> None:
    call = function(V2_SAMPLER, "Sampler.__call__")
    assert "pos = input_batch.positions[input_batch.logits_indices]" in call
    sample = function(V2_SAMPLER, "Sampler._sample_random")
    assert "self.sampling_states.seeds.gpu, pos" in sample
    assert "self.sampling_states.any_explicit_seed(idx_mapping_np)" in function(
        V2_SAMPLER, "Sampler.sample"
    )
    noise = function("v1/worker/gpu/sample/gumbel.py", "gumbel_noised_argmax")
    assert "u = murmur3_uniform32(seed, pos, keys)" in noise
    folder = source("v1/worker/gpu/sample")
    assert not [path for path in folder.rglob("*.py") if "Generator(" in path.read_text()]


def test_v2_sampling_states_count_outputs_from_the_prompts_end() -> None:
    penalties = "v1/worker/gpu/sample/penalties.py"
    counted = function(penalties, "PenaltiesState.apply_staged_writes")
    assert "self.req_states.prompt_len.gpu, self.req_states.prefill_len.gpu" in counted
    assert "mask &= block >= prompt_len" in function(penalties, "_bincount_kernel")
    bias = function("v1/worker/gpu/sample/logit_bias.py", "LogitBiasState.add_request")
    assert "min_len = prompt_len + min_tokens" in bias
    words = function("v1/worker/gpu/sample/bad_words.py", "_bad_words_kernel")
    assert "output_len = total_len - prompt_len" in words


# ------------------------------------------------------------------ scheduler and grammar


def test_scheduler_side_is_where_it_was() -> None:
    ended = function("v1/core/sched/utils.py", "check_stop")
    assert ended.startswith("def check_stop(request: Request, max_model_len: int) -> bool")
    request = "v1/structured_output/request.py"
    assert "self._grammar = self._grammar.result()" in function(
        request, "StructuredOutputRequest._check_grammar_completion"
    )
    manager = function("v1/structured_output/__init__.py", "StructuredOutputManager.grammar_init")
    assert "grammar = self.executor.submit(self._create_grammar, request)" in manager
    core = function("v1/engine/core.py", "EngineCoreProc._handle_client_request")
    assert "self.add_request(req, request_wave)" in core
    receive = function("v1/engine/core.py", "EngineCoreProc.process_input_sockets")
    assert "self._handle_request_preproc_error(req)" in receive
