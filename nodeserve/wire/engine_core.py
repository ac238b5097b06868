"""vLLM's messages to an EngineCore, read and patched by field name without importing vLLM.

The structs are positional msgpack arrays; ``WireFields`` gives the names of the positions. A
request is taken apart only one level deep: what we do not touch stays the bytes that came.

Every ``decode`` here raises ValueError for a frame that is not what it should be, whatever is
wrong with it; the caller drops the frame and counts it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from nodeserve.ids import Generation, LegId
from nodeserve.wire.codec import (
    GARBAGE,
    NIL,
    decode_any,
    decode_raws,
    decoded,
    encode,
    refuse,
)
from nodeserve.wire.control import WireFields

ADD: Final = b"\x00"
ABORT: Final = b"\x01"
UTILITY: Final = b"\x03"
"""Kinds of message to an engine. Source: vllm/v1/engine/__init__.py, EngineCoreRequestType."""

REMOTE_DECODE: Final[Mapping[str, bool]] = {"do_remote_decode": True}

RESUMED: Final = "nodeserve_resumed"
"""Key in ``extra_args``: the token ids that the client has already been sent, in order.

They are outputs of the request from its beginning: the engine restores them as such, and its
outputs hold only what comes after. None or an empty list means that nothing was sent.
"""

LISTENER: Final = "nodeserve_listener"
"""Key in ``kv_transfer_params``: whose request this is, for who keeps KV below the GPU."""

MAX_GRAMMAR_BYTES: Final = 64 << 10
"""Size of a request's structured output on the wire, of a pattern, schema or grammar. Engines
take time in its square to compile it: 20 kB of pattern 0.9 s, 100 kB 12 s (xgrammar, one core)."""

_FOREIGN_ARGS: Final = ("kv_transfer_params", "ec_transfer_params", RESUMED)
"""They name memory or what was sent, so a client may not set them."""

_PREFILL_DROPS: Final = (
    "_all_stop_token_ids",
    "logprob_token_ids",
    "logprobs",
    "min_tokens",
    "repetition_detection",
    "stop",
    "stop_token_ids",
    "stream_interval",
    "structured_outputs",
)
"""What must not act on the one token of a prefill leg, which nobody sees."""

_PROMPT_LOGPROBS: Final = ("prompt_logprobs", "prompt_logprob_token_ids")
"""Parameters whose result comes once, with the first output."""

_WHOLE_PARAMS: Final = (*_PROMPT_LOGPROBS, "skip_reading_prefix_cache")
"""Parameters whose result must be computed where it is asked for, or that refuse pulled KV."""

_decode_str: Final = msgspec.msgpack.Decoder(str).decode
_decode_ids: Final = msgspec.msgpack.Decoder(list[str]).decode
_decode_tokens: Final = msgspec.msgpack.Decoder(list[int] | None).decode
_decode_bool: Final = msgspec.msgpack.Decoder(bool).decode
_decode_utility: Final = msgspec.msgpack.Decoder(tuple[int, int, str, list[Any]]).decode

_NIL: Final = msgspec.Raw(NIL)
_ZERO: Final = msgspec.Raw(encode(0))


def identity_of(generation: Generation) -> bytes:
    """Return the ZeroMQ identity of an engine. Source: vllm/v1/engine/core.py (0.32)."""
    return generation.to_bytes(2, "little")


def generation_of(identity: bytes) -> Generation:
    """Return whose identity this is; raises ValueError for one that is not an engine's."""
    if len(identity) != 2:
        text = f"identity {identity!r} is not an engine's two bytes"
        raise ValueError(text)
    return Generation(int.from_bytes(identity, "little"))


def _is_asked_for(value: object) -> bool:
    return value is not None and value is not False  # prompt_logprobs=0 asks for something


def decode_abort(frame: bytes) -> list[str]:
    """Return the request ids of an ABORT."""
    return decoded(_decode_ids, "ABORT", frame)


def decode_utility(frame: bytes) -> tuple[int, int, str, list[Any]]:
    """Return ``(client_index, call_id, method, args)`` of a UTILITY."""
    return decoded(_decode_utility, "UTILITY", frame)


def encode_utility(call_id: int, method: str, args: Sequence[object]) -> bytes:
    """Return the payload of a UTILITY from client 0."""
    return encode((0, call_id, method, args))


class AddRequest:
    """One EngineCoreRequest, taken apart.

    Attributes:
        wire_id: The request id the front end chose.
        prompt_token_ids: None when the prompt is embeddings.
        sampling: The sampling parameters as vLLM's map of them; None for pooling.
        max_tokens: At most this many output tokens, 0 for pooling; None is up to the model.
        priority: Lower goes first.
        whole: It cannot be handed over: pooling, prompt logprobs, streaming input, media.
        media: Its KV depends on images or embeddings beside the tokens.
        restorable: An engine can go on where another one stopped: it samples tokens, and asks
            for nothing that came with the first of them.
        lora_name: The adapter that its KV depends on.
        cache_salt: What keeps its KV apart from other clients'.
        resumable: Later ADDs with the same id continue it.
        abort_immediately: It asks only to free what its ``kv_transfer_params`` name; engines do
            not answer it.
    """

    __slots__ = (
        "abort_immediately",
        "cache_salt",
        "lora_name",
        "max_tokens",
        "media",
        "priority",
        "prompt_token_ids",
        "raws",
        "restorable",
        "resumable",
        "sampling",
        "whole",
        "wire_id",
    )

    raws: list[msgspec.Raw]
    wire_id: str
    prompt_token_ids: list[int] | None
    sampling: dict[str, Any] | None
    max_tokens: int | None
    priority: int
    whole: bool
    media: bool
    lora_name: str | None
    cache_salt: str | None
    resumable: bool
    abort_immediately: bool
    restorable: bool


class RequestCodec:
    """Reads ADD requests and writes their legs, for one vLLM version."""

    def __init__(self, fields: WireFields, grammar_backend: str) -> None:
        """Build the index map.

        ``grammar_backend`` is written into every request with structured output: an engine
        keeps the first backend it sees, and fails requests that name another one. Source:
        vllm/v1/structured_output/__init__.py, StructuredOutputManager.grammar_init.

        Raises:
            ValueError: The version lacks a field that we cannot do without.
        """
        at = {name: index for index, name in enumerate(fields.request)}
        missing = {"request_id", "prompt_token_ids", "sampling_params", "client_index"} - set(at)
        if missing:
            text = f"vLLM {fields.vllm_version} requests lack {sorted(missing)}; not supported"
            raise ValueError(text)
        self._at = at
        self._id = at["request_id"]
        self._prompt = at["prompt_token_ids"]
        self._sampling = at["sampling_params"]
        self._zero = [at[n] for n in ("client_index", "current_wave") if n in at]
        self._nil = [at[n] for n in ("data_parallel_rank",) if n in at]
        self._media = [at[n] for n in ("mm_features", "prompt_embeds") if n in at]
        self._flags = [at[n] for n in ("resumable", "abort_immediately") if n in at]
        self._grammar_backend = grammar_backend

    def wire_id(self, frame: bytes) -> str:
        """Return only the id of a request whose rest may be beyond reading."""
        try:
            return _decode_str(decode_raws(frame)[self._id])
        except (*GARBAGE, IndexError) as error:
            refuse("ADD", frame, error)

    def decode(self, frame: bytes) -> AddRequest:
        """Take a request apart; strips what a client may not set."""
        try:
            return self._decode(decode_raws(frame))
        except (*GARBAGE, IndexError, KeyError, AttributeError) as error:
            refuse("ADD", frame, error)

    def _decode(self, raws: list[msgspec.Raw]) -> AddRequest:
        add = AddRequest()
        add.raws = raws
        add.wire_id = _decode_str(raws[self._id])
        add.prompt_token_ids = _decode_tokens(raws[self._prompt])
        add.sampling = sampling = decode_any(raws[self._sampling])
        for index in self._zero:
            if index < len(raws):
                raws[index] = _ZERO
        for index in self._nil:
            if index < len(raws):
                raws[index] = _NIL
        add.resumable = self._value(raws, "resumable") is True
        add.abort_immediately = self._value(raws, "abort_immediately") is True
        add.media = self._any_set(raws, self._media)
        priority = self._value(raws, "priority")
        add.priority = priority if isinstance(priority, int) else 0
        salt = self._value(raws, "cache_salt")
        add.cache_salt = salt if isinstance(salt, str) else None
        adapter = self._value(raws, "lora_request")
        add.lora_name = str(adapter[0]) if adapter else None
        add.max_tokens = 0
        add.whole = True
        add.restorable = False
        if sampling is not None:
            # Maps leave out defaults; vLLM's own is 16.
            limit = sampling.get("max_tokens", 16)
            add.max_tokens = limit if isinstance(limit, int) else None
            self._clean(sampling)
            add.whole = (
                add.max_tokens == 1
                or add.media
                or any(self._is_true_at(raws, index) for index in self._flags)
                or add.prompt_token_ids is None
                or any(_is_asked_for(sampling.get(name)) for name in _WHOLE_PARAMS)
            )
            add.restorable = not (
                any(self._is_true_at(raws, index) for index in self._flags)
                or any(_is_asked_for(sampling.get(name)) for name in _PROMPT_LOGPROBS)
            )
        return add

    def _clean(self, sampling: dict[str, Any]) -> None:
        extra = sampling.get("extra_args")
        if extra:
            for name in _FOREIGN_ARGS:
                extra.pop(name, None)
        grammar = sampling.get("structured_outputs")
        if grammar is not None:
            if (size := len(encode(grammar))) > MAX_GRAMMAR_BYTES:
                text = f"its structured output takes {size} bytes, above {MAX_GRAMMAR_BYTES}"
                raise ValueError(text)
            grammar["_backend"] = self._grammar_backend

    def _any_set(self, raws: list[msgspec.Raw], indexes: list[int]) -> bool:
        return any(index < len(raws) and bytes(raws[index]) != NIL for index in indexes)

    def _is_true_at(self, raws: list[msgspec.Raw], index: int) -> bool:
        return index < len(raws) and _decode_bool(raws[index])

    def _value(self, raws: list[msgspec.Raw], name: str) -> Any:
        index = self._at.get(name)
        if index is None or index >= len(raws) or bytes(raws[index]) == NIL:
            return None
        return decode_any(raws[index])

    def whole_leg(self, add: AddRequest, leg_id: LegId) -> bytes:
        """Return the request as the client meant it, under the leg's id."""
        return self._leg(add, leg_id, add.sampling)

    def prefill_leg(self, add: AddRequest, leg_id: LegId) -> bytes:
        """Return the request to compute the prompt only and leave its KV for another engine.

        It makes one token, which nothing may stop early or constrain and nobody will see: the
        decode leg computes the last position again and samples with the request's own rules.
        """
        sampling = dict(add.sampling or {})
        for name in _PREFILL_DROPS:
            sampling.pop(name, None)
        sampling["max_tokens"] = 1
        sampling["ignore_eos"] = True  # else a first token that ends the text would end the leg
        _add_transfer_params(sampling, REMOTE_DECODE)
        return self._leg(add, leg_id, sampling)

    def resumed_leg(self, add: AddRequest, leg_id: LegId, sent: Sequence[int]) -> bytes:
        """Return the request as the client meant it, to go on behind the tokens in ``sent``."""
        sampling = dict(add.sampling or {})
        sampling["extra_args"] = (sampling.get("extra_args") or {}) | {RESUMED: list(sent)}
        return self._leg(add, leg_id, sampling)

    def decode_leg(self, add: AddRequest, leg_id: LegId, handoff: Mapping[str, Any]) -> bytes:
        """Return the request as the client meant it, with the KV that another engine holds."""
        sampling = dict(add.sampling or {})
        _add_transfer_params(sampling, handoff)
        return self._leg(add, leg_id, sampling)

    def _leg(self, add: AddRequest, leg_id: LegId, sampling: dict[str, Any] | None) -> bytes:
        fields: list[object] = list(add.raws)
        fields[self._id] = leg_id
        if sampling is not None:
            fields[self._sampling] = sampling
        return encode(fields)


def name_listener(add: AddRequest, listener: str) -> None:
    """Let every leg of a request tell its engine which listener it came through.

    A pooling request has no place for that, and leaves no KV behind.
    """
    if add.sampling is not None:
        _add_transfer_params(add.sampling, {LISTENER: listener})


def _add_transfer_params(sampling: dict[str, Any], params: Mapping[str, Any]) -> None:
    """Put ``params`` beside the ``kv_transfer_params`` that are there, all of them ours."""
    extra = sampling.get("extra_args") or {}
    before = extra.get("kv_transfer_params") or {}
    sampling["extra_args"] = extra | {"kv_transfer_params": {**before, **params}}
