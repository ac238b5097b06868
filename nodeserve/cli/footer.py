"""The line below an answer: where it ran and how fast."""

import time
from collections.abc import Callable
from typing import Final

from nodeserve.cli.connection import Node, ask
from nodeserve.cli.status import size
from nodeserve.errors import NodeserveError
from nodeserve.wire.control import StatusReply, StatusRequest
from nodeserve.wire.status import RequestTrace

_TRIES: Final = 5
_BETWEEN_S: Final = 0.1
_LEAST_FOR_RATE: Final = 16
"""Tokens that an answer must have for a speed: the few of a shorter one may arrive together."""


def find_trace(
    node: Node, answer_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> RequestTrace | None:
    """Return the daemon's trace of an answer; None where the daemon does not know it.

    A trace may come just after its answer's end, so this asks again for half a second. An
    answer through TCP, or by another user, has no trace that we may see.
    """
    return _find(node, lambda trace: trace.request_id.startswith(answer_id), sleep)


def find_failure(
    node: Node, request_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> RequestTrace | None:
    """Return the daemon's trace of a request that it has failed, by our own id; else None."""

    def is_it(trace: RequestTrace) -> bool:
        return trace.error is not None and request_id in trace.request_id

    return _find(node, is_it, sleep)


def _find(
    node: Node, is_it: Callable[[RequestTrace], bool], sleep: Callable[[float], None]
) -> RequestTrace | None:
    for turn in range(_TRIES):
        if turn:
            sleep(_BETWEEN_S)
        try:
            reply = ask(node, StatusRequest(), StatusReply)
        except NodeserveError:
            return None
        for trace in reply.requests.recent if reply.requests is not None else ():
            if is_it(trace):
                return trace
    return None


def describe(trace: RequestTrace, finish: str | None = None) -> str:
    """Return workers, handoff, time to first token and speed in one line.

    ``finish`` is why the answer ended, as its client was told: a stop string, which the gateway
    finds, ends a trace as an abort.
    """
    workers = [name for name in (trace.prefill_worker, trace.decode_worker) if name is not None]
    parts = [" → ".join(dict.fromkeys(workers))] if workers else []
    if trace.handoff_bytes:
        parts.append(f"handoff {size(trace.handoff_bytes)} in {trace.handoff_ms:.1f} ms")
    parts.append(f"{trace.prompt_tokens} prompt tokens ({trace.cached_tokens} cached)")
    parts.append(f"TTFT {trace.ttft_ms:.0f} ms")
    decode_s = (trace.total_ms - trace.ttft_ms) / 1000
    if trace.output_tokens >= _LEAST_FOR_RATE and decode_s > 0:
        parts.append(f"{(trace.output_tokens - 1) / decode_s:.1f} tokens/s")
    if trace.resumed:
        parts.append(f"went on at another worker {trace.resumed}x")
    if finish not in (None, "stop"):
        parts.append(f"ended by {finish} after {trace.output_tokens} tokens")
    return " · ".join(parts)
