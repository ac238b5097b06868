"""vLLM 0.32's EngineCore messages as the simulated engine reads and writes them.

Structs are positional lists on this wire; stats and events inside them are maps. Source:
vllm/v1/engine/__init__.py, v1/metrics/stats.py, v1/serial_utils.py, distributed/kv_events.py.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nodeserve.engine.simulated.kv_blocks import CacheEvent, Cleared, Removed, Stored
from nodeserve.wire.control import WireFields

ADD: Final = b"\x00"
ABORT: Final = b"\x01"
UTILITY: Final = b"\x03"

FIELDS: Final = WireFields(
    request=(
        "request_id",
        "prompt_token_ids",
        "mm_features",
        "sampling_params",
        "pooling_params",
        "arrival_time",
        "lora_request",
        "cache_salt",
        "data_parallel_rank",
        "prompt_embeds",
        "prompt_is_token_ids",
        "client_index",
        "current_wave",
        "priority",
        "trace_headers",
        "resumable",
        "external_req_id",
        "reasoning_ended",
        "reasoning_parser_kwargs",
        "abort_immediately",
        "session_id",
        "kv_hints",
    ),
    outputs=(
        "engine_index",
        "outputs",
        "scheduler_stats",
        "timestamp",
        "utility_output",
        "finished_requests",
        "wave_complete",
        "start_wave",
        "weight_version",
    ),
    output=(
        "request_id",
        "new_token_ids",
        "new_logprobs",
        "new_prompt_logprobs_tensors",
        "pooling_output",
        "finish_reason",
        "stop_reason",
        "events",
        "kv_transfer_params",
        "ec_transfer_params",
        "trace_headers",
        "prefill_stats",
        "routed_experts",
        "num_nans_in_logits",
        "mm_cache_miss_hashes",
        "new_sampling_mask",
        "spec_decode_metrics",
        "prompt_token_id_logprobs",
    ),
    vllm_version="0.32.0",
)

FINISH_STOP: Final = 0
FINISH_LENGTH: Final = 1
FINISH_ABORT: Final = 2
FINISH_ERROR: Final = 3

EVENT_QUEUED: Final = 1
EVENT_SCHEDULED: Final = 2
EVENT_PREEMPTED: Final = 3

Row = list[Any]
"""One EngineCoreOutput; its fields are at the following places. Fields behind its end have their
default values: in the middle of a stream it is only as long as its tokens."""

TOKENS: Final = FIELDS.output.index("new_token_ids")
LOGPROBS: Final = FIELDS.output.index("new_logprobs")
PROMPT_LOGPROBS: Final = FIELDS.output.index("new_prompt_logprobs_tensors")
FINISH_REASON: Final = FIELDS.output.index("finish_reason")
STOP_REASON: Final = FIELDS.output.index("stop_reason")
EVENTS: Final = FIELDS.output.index("events")
KV_TRANSFER_PARAMS: Final = FIELDS.output.index("kv_transfer_params")
PREFILL_STATS: Final = FIELDS.output.index("prefill_stats")

_MEDIUM: Final = "GPU"
_HASH_MASK: Final = (1 << 64) - 1

_RAW_VIEW: Final = 3
"""Extension code of an array's bytes inside the message (CUSTOM_TYPE_RAW_VIEW)."""


class Sampling(msgspec.Struct, gc=False):
    """The sampling parameters that make a difference here; defaults are vLLM's."""

    max_tokens: int | None = 16
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_args: dict[str, Any] | None = None


class Request(msgspec.Struct, array_like=True, gc=False):
    """EngineCoreRequest: every field at its place, typed where it makes a difference here."""

    request_id: str
    prompt_token_ids: list[int] | None
    mm_features: Any
    sampling_params: Sampling | None
    pooling_params: Any
    arrival_time: Any
    lora_request: Any
    cache_salt: str | None
    data_parallel_rank: Any
    prompt_embeds: Any = None
    prompt_is_token_ids: Any = None
    client_index: Any = 0
    current_wave: Any = 0
    priority: int = 0
    trace_headers: Any = None
    resumable: Any = False
    external_req_id: Any = None
    reasoning_ended: Any = None
    reasoning_parser_kwargs: Any = None
    abort_immediately: bool = False


class Name(msgspec.Struct, array_like=True):
    """What is left of an EngineCoreRequest that cannot be read: who waits for its end."""

    request_id: str


class Handoff(msgspec.Struct, frozen=True):
    """What a prefill leg leaves for a decode leg in ``kv_transfer_params``."""

    do_remote_prefill: bool
    engine: int
    lease_id: int
    num_tokens: int
    num_bytes: int


class UtilityCall(msgspec.Struct, array_like=True):
    """A front end's call of an engine method."""

    client_index: int
    call_id: int
    method: str
    args: list[Any]


class _BlockStored(msgspec.Struct, tag="BlockStored", omit_defaults=True, gc=False):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None
    extra_keys: list[list[str] | None] | None = None
    group_idx: int | None = None


class _BlockRemoved(msgspec.Struct, tag="BlockRemoved", omit_defaults=True, gc=False):
    block_hashes: list[int]
    medium: str
    group_idx: int | None = None


class _AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


_ENCODE: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(Request).decode
decode_name: Final = msgspec.msgpack.Decoder(Name).decode
decode_abort: Final = msgspec.msgpack.Decoder(list[str]).decode
decode_utility: Final = msgspec.msgpack.Decoder(UtilityCall).decode


def new_row(request_id: str, token: int) -> Row:
    """Return an output with one token and nothing else; ``put`` sets further fields."""
    return [request_id, [token]]


def put(row: Row, index: int, value: object) -> None:
    """Set a field, making the row as long as needed with fields that may be nil."""
    row.extend([None] * (index + 1 - len(row)))
    row[index] = value


def end_row(request_id: str, finish_reason: int) -> Row:
    """Return an output that ends a request without a token."""
    row: Row = [request_id, []]
    put(row, FINISH_REASON, finish_reason)
    return row


def event(kind: int, at_s: float) -> dict[str, Any]:
    """Return an EngineCoreEvent."""
    return {"type": kind, "timestamp": at_s}


@dataclass(slots=True)
class PrefixStats:
    """Look-ups in the prefix cache: requests, their tokens, and how many were found."""

    requests: int = 0
    queries: int = 0
    hits: int = 0


def scheduler_stats(
    *, running: int, waiting: int, loading: int, kv_usage: float, looked_up: PrefixStats
) -> dict[str, Any]:
    """Return SchedulerStats of one step, with every field: the Rust front end asks for them."""
    return {
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_skipped_waiting_reqs": loading,
        "num_kv_fetch_reqs_by_stage": {"in_progress": loading} if loading else {},
        "step_counter": 0,
        "current_wave": 0,
        "kv_cache_usage": kv_usage,
        "iteration_details": None,
        "prefix_cache_stats": {
            "reset": False,
            "requests": looked_up.requests,
            "queries": looked_up.queries,
            "hits": looked_up.hits,
            "preempted_requests": 0,
            "preempted_queries": 0,
            "preempted_hits": 0,
            "hits_by_source": {},
        },
        "connector_prefix_cache_stats": None,
        "kv_cache_eviction_events": [],
        "spec_decoding_stats": None,
        "kv_connector_stats": None,
        "ec_connector_stats": None,
        "waiting_lora_adapters": {},
        "running_lora_adapters": {},
        "cudagraph_stats": None,
        "perf_stats": None,
    }


class OutputsEncoder:
    """Encodes EngineCoreOutputs of one engine into one frame each."""

    def __init__(self, engine_index: int) -> None:
        self._step: list[Any] = [engine_index, None, None, 0.0, *(None,) * 5]
        self._utility: list[Any] = [engine_index, [], None, 0.0, None, *(None,) * 4]

    def step(self, rows: Sequence[Row], stats: dict[str, Any] | None, now_s: float) -> bytes:
        """Return the message of one engine step; SchedulerStats go as a map."""
        self._step[1:4] = (rows, stats, now_s)
        return _ENCODE(self._step)

    def utility(self, call_id: int, value: object, failure: str | None, *, now_s: float) -> bytes:
        """Return the answer to a utility call: its value, or why it failed."""
        result = None if failure is not None else [None, value]
        self._utility[3:5] = (now_s, [call_id, failure, result])
        return _ENCODE(self._utility)


def encode_kv_events(events: Sequence[CacheEvent], block_size: int, unix_s: float) -> bytes:
    """Return the payload of one message of the KV event publisher (KVEventBatch)."""
    return _ENCODE([unix_s, [_kv_event(event, block_size) for event in events], 0])


def _kv_event(event: CacheEvent, block_size: int) -> msgspec.Struct:
    match event:
        case Stored():
            salted = event.salt is not None and event.parent is None
            rest = [None] * (len(event.hashes) - 1)
            return _BlockStored(
                block_hashes=[_external(block_hash) for block_hash in event.hashes],
                parent_block_hash=None if event.parent is None else _external(event.parent),
                token_ids=event.tokens,
                block_size=block_size,
                lora_id=None,
                medium=_MEDIUM,
                lora_name=None,
                extra_keys=[[str(event.salt)], *rest] if salted else None,
                group_idx=0,
            )
        case Removed():
            hashes = [_external(block_hash) for block_hash in event.hashes]
            return _BlockRemoved(block_hashes=hashes, medium=_MEDIUM, group_idx=0)
        case Cleared():
            return _AllBlocksCleared()


def _external(block_hash: int) -> int:
    """Return the hash as vLLM shows it: 64 bits without sign."""
    return block_hash & _HASH_MASK


def sample_logprobs(token: int, others: Sequence[int]) -> list[Any]:
    """Return LogprobsLists of one sampled token: it is always the likeliest, at one half."""
    return [*_logprob_arrays([token], others, "<i4", "<f4"), None]


def prompt_logprobs(tokens: Sequence[int], others: Sequence[int]) -> list[Any]:
    """Return LogprobsTensors of a prompt's tokens from the second on."""
    return [*_logprob_arrays(tokens, others, "int32", "float32"), None, None]


def _logprob_arrays(
    tokens: Sequence[int], others: Sequence[int], ints: str, floats: str
) -> list[Any]:
    columns = 1 + len(others)
    ids = [value for token in tokens for value in (token, *others)]
    # Rank r has probability 2 ** -r; column 0 repeats the token of rank 1.
    values = [-0.6931472 * max(1, column) for column in range(columns)] * len(tokens)
    return [
        [ints, [len(tokens), columns], _inline(struct.pack(f"<{len(ids)}i", *ids))],
        [floats, [len(tokens), columns], _inline(struct.pack(f"<{len(values)}f", *values))],
        [ints, [len(tokens)], _inline(struct.pack(f"<{len(tokens)}i", *(1,) * len(tokens)))],
    ]


def _inline(data: bytes) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_RAW_VIEW, data)
