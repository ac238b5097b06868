"""Requests that continue where another engine stopped: the scheduler's and the grammar's half.

An ADD whose ``extra_args`` hold ``wire.engine_core.RESUMED`` brings the tokens that the client
has already been sent. They become output tokens of the request, as if it had been preempted
after them: limits, stops and penalties count them, and outputs hold only what comes after. The
sampler's half is in ``resume_runner``.
"""

from collections.abc import Sequence
from concurrent.futures import Future

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from nodeserve.errors import PeerError
from nodeserve.wire.engine_core import RESUMED


def resumed_tokens(params: SamplingParams | None) -> Sequence[int]:
    """Return the tokens that the client has already been sent; none for most requests."""
    extra = None if params is None else params.extra_args
    return (extra or {}).get(RESUMED) or ()


def require_tokens(request_id: str, tokens: object, vocab_size: int) -> None:
    """Refuse what cannot be tokens: looking up its embeddings would end the engine.

    Raises:
        PeerError: ``tokens`` are not all token ids of this model.
    """
    if not isinstance(tokens, list) or not all(
        type(token) is int and 0 <= token < vocab_size for token in tokens
    ):
        text = (
            f"request {request_id}: {RESUMED} must be a list of token ids below {vocab_size}; "
            "send what this model's engine put out"
        )
        raise PeerError(text)


def restore(request: Request, tokens: Sequence[int], max_model_len: int) -> None:
    """Make ``tokens`` the request's first output tokens, before the scheduler has seen it.

    A request that they complete is finished afterwards, which the caller must ask for: the
    scheduler would generate one token more.
    """
    request.append_output_token_ids(list(tokens))
    # The prompt was accounted for with the first of them. vLLM's scheduler also asserts that a
    # first prefill finds no more in the prefix cache than the prompt, which is not so here.
    request.prefill_stats = None
    check_stop(request, max_model_len)


def advance_grammar(
    manager: StructuredOutputManager, request: Request, add: EngineCoreRequest
) -> None:
    """Let the request wait until its grammar is compiled and has taken the restored tokens.

    A grammar that does not take one fails the request, as one that does not compile.

    Args:
        manager: It has begun to compile the request's grammar.
        request: Not yet seen by the scheduler.
        add: What it was made of.
    """
    structured = request.structured_output_request
    if structured is None:
        return
    tokens = list(request.output_token_ids)
    compiled: Future[StructuredOutputGrammar] = structured._grammar  # noqa: SLF001 - no reader
    advanced: Future[StructuredOutputGrammar] = Future()
    structured.grammar = advanced

    def settle(done: Future[StructuredOutputGrammar]) -> None:
        try:
            grammar = done.result()
            structured.reasoning_ended = _replay(manager, add, grammar, tokens)
        except Exception as error:  # noqa: BLE001 - the scheduler fails the request with it
            advanced.set_exception(error)
        else:
            advanced.set_result(grammar)

    compiled.add_done_callback(settle)


def finished_outputs(request: Request) -> EngineCoreOutputs:
    """Return the end, without a token, of a request that the restored tokens complete."""
    output = EngineCoreOutput(
        request.request_id,
        [],
        finish_reason=request.get_finished_reason(),
        stop_reason=request.stop_reason,
    )
    return EngineCoreOutputs(outputs=[output], finished_requests={request.request_id})


def _replay(
    manager: StructuredOutputManager,
    add: EngineCoreRequest,
    grammar: StructuredOutputGrammar,
    tokens: Sequence[int],
) -> bool | None:
    """Feed the grammar token by token, as the scheduler did; return whether reasoning ended.

    A request of its own stands for the one in the scheduler: where a grammar begins, after
    reasoning, is found by the tokens so far.
    """
    past = Request.from_engine_core_request(add, None)
    structured = past.structured_output_request
    structured.grammar = grammar
    for position, token in enumerate(tokens):
        past.append_output_token_ids(token)
        if not manager.accept_tokens(past, [token]):
            text = (
                f"request {add.request_id}: its grammar does not take token {token}, number "
                f"{position} of {len(tokens)} resumed; send what an engine put out for it"
            )
            raise PeerError(text)
    return structured.reasoning_ended
