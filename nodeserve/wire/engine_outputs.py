"""vLLM's messages from an EngineCore, read and patched by field name without importing vLLM."""

from typing import Any, Final

import msgspec

from nodeserve.ids import LeaseId
from nodeserve.wire.codec import NIL, decode_any, decode_raws, decoded, refuse
from nodeserve.wire.control import WireFields

ENGINE_DEAD: Final = b"ENGINE_CORE_DEAD"

STOP, LENGTH, ABORTED, ERROR = range(4)
FINISH_NAMES: Final = ("stop", "length", "abort", "error", "repetition")
"""Source: vllm/v1/engine/__init__.py, FinishReason."""

_REST: Final = 2
"""Where an output's fields begin that are neither its request's id nor tokens."""


class Handoff(msgspec.Struct, frozen=True):
    """What lets a decode leg read a prefill leg's KV; ``params`` go on as they came."""

    engine: int
    lease_id: LeaseId
    num_tokens: int
    num_bytes: int
    params: dict[str, Any]


class OutputCodec:
    """Reads and writes EngineCoreOutputs, for one vLLM version.

    Messages and outputs stay plain lists, patched in place at the positions given here. An
    output may be shorter than the struct: what is past its end has the default value.
    """

    def __init__(self, fields: WireFields) -> None:
        """Build the index map; raises ValueError when the version lacks a needed field."""
        message = {name: index for index, name in enumerate(fields.outputs)}
        output = {name: index for index, name in enumerate(fields.output)}
        try:
            self.engine_index: Final = message["engine_index"]
            self.outputs: Final = message["outputs"]
            self.scheduler_stats: Final = message["scheduler_stats"]
            self.timestamp: Final = message["timestamp"]
            self.utility_output: Final = message["utility_output"]
            self.finished_requests: Final = message["finished_requests"]
            self.request_id: Final = output["request_id"]
            self.new_token_ids: Final = output["new_token_ids"]
            self.finish_reason: Final = output["finish_reason"]
            self.events: Final = output["events"]
            self.kv_transfer_params: Final = output["kv_transfer_params"]
            self.prefill_stats: Final = output["prefill_stats"]
            stop_reason = output["stop_reason"]
        except KeyError as error:
            text = f"vLLM {fields.vllm_version} outputs lack {error}; not supported"
            raise ValueError(text) from error
        tokens = {self.request_id, self.new_token_ids}
        if tokens != set(range(_REST)):
            text = f"vLLM {fields.vllm_version} outputs do not begin with id and tokens"
            raise ValueError(f"{text}; not supported")
        self._beginning: Final = frozenset(tokens | {self.prefill_stats, self.events})
        self._end: Final = frozenset(tokens | {self.finish_reason, stop_reason})

    def decode(self, frame: bytes) -> list[Any]:
        """Return one step's message: a list that holds at least engine index and outputs.

        Scheduler statistics stay the bytes that came, as msgspec's Raw or None: they are most of
        a small message, and mostly repeat the last one's.
        """
        message = decoded(self._decode, "EngineCoreOutputs", frame)
        if len(message) <= self.outputs:
            refuse("EngineCoreOutputs", frame, "it is not such an array")
        index = message[self.engine_index]
        if type(index) is not int or type(message[self.outputs]) is not list:
            refuse("EngineCoreOutputs", frame, "its engine index or outputs have another type")
        return message

    def _decode(self, frame: bytes) -> list[Any]:
        message: list[Any] = []
        for index, raw in enumerate(decode_raws(frame)):
            if index != self.scheduler_stats:
                message.append(decode_any(raw))
            else:
                message.append(None if bytes(raw) == NIL else raw)
        return message

    @staticmethod
    def field(row: list[Any], index: int) -> Any:
        """Return a field, None where the array ends before it."""
        return row[index] if index < len(row) else None

    @staticmethod
    def put(row: list[Any], index: int, value: object) -> None:
        """Set a field, making the array as long as needed; only over fields that may be nil."""
        row.extend([None] * (index + 1 - len(row)))
        row[index] = value

    def handoff(self, output: list[Any]) -> Handoff | None:
        """Return the handoff that a finished prefill leg offers; None when it offers none.

        Raises:
            ValueError: It offers something that is not a handoff.
        """
        params = self.field(output, self.kv_transfer_params)
        if params is None:
            return None
        try:
            return msgspec.convert({**params, "params": params}, Handoff)
        except (msgspec.ValidationError, TypeError) as error:
            text = f"kv_transfer_params {params!r:.200} are not a handoff: {error}"
            raise ValueError(text) from error

    def is_plain(self, output: list[Any]) -> bool:
        """Return whether an output has nothing but tokens, and ends nothing."""
        if len(output) > _REST and (any(output[_REST:]) or self._ends(output)):
            return False
        return type(output[self.new_token_ids]) is list

    def is_mere_end(self, output: list[Any]) -> bool:
        """Return whether an output has nothing but tokens and says that they are the last ones.

        One without a token is none: a front end drops the last token of a request that stopped
        (``stop_terminated`` in vllm/v1/engine/detokenizer.py), and all that come with a failure.
        """
        tokens = output[self.new_token_ids]
        if type(tokens) is not list or not tokens or not self._ends(output):
            return False
        return output[self.finish_reason] in {STOP, LENGTH} and _says_only(output, self._end)

    def may_grow(self, output: list[Any]) -> bool:
        """Return whether later tokens of the request may be added to this output.

        Not to what belongs to single tokens, such as log probabilities; but what tells of a
        request's beginning does not mind.
        """
        if self._ends(output) or type(output[self.new_token_ids]) is not list:
            return False
        return _says_only(output, self._beginning)

    def join_end(self, output: list[Any], end: list[Any]) -> None:
        """Let an output that may grow have what a mere end of the same request has."""
        output[self.new_token_ids] += end[self.new_token_ids]
        for index in self._end - self._beginning:
            self.put(output, index, self.field(end, index))

    def says_the_same(self, message: list[Any], other: list[Any]) -> bool:
        """Return whether what two messages say of all their outputs is the same.

        That is their weight version and wave; everything before is merged or made anew.
        """
        first = self.finished_requests + 1
        return message[first:] == other[first:]

    def finish(self, wire_id: str, reason: int) -> list[Any]:
        """Return an output that ends a request and carries no token."""
        output: list[Any] = []
        self.put(output, self.finish_reason, reason)
        output[self.request_id] = wire_id
        output[self.new_token_ids] = []
        return output

    def message(self, outputs: list[Any], stats: object, timestamp: float) -> list[Any]:
        """Return a message of engine 0."""
        message: list[Any] = []
        self.put(message, max(self.timestamp, self.scheduler_stats), None)
        message[self.engine_index] = 0
        message[self.outputs] = outputs
        message[self.scheduler_stats] = stats
        message[self.timestamp] = timestamp
        return message

    def utility_answer(
        self, call_id: int, failure: str | None, result: object, timestamp: float
    ) -> list[Any]:
        """Return a message that answers a UTILITY; ``result`` counts when nothing failed."""
        message = self.message([], None, timestamp)
        value = None if failure is not None else [None, result]
        self.put(message, self.utility_output, [call_id, failure, value])
        return message

    def _ends(self, output: list[Any]) -> bool:
        return len(output) > self.finish_reason and output[self.finish_reason] is not None


def _says_only(output: list[Any], indexes: frozenset[int]) -> bool:
    """Return whether all other fields have their default values, which are nil and zero."""
    if not any(output[_REST:]):
        return True
    return not any(value for index, value in enumerate(output) if index not in indexes)


def events_of(value: object) -> list[dict[str, Any]]:
    """Return an output's EngineCoreEvents, which are maps."""
    return [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []


def counter_of(stats: object, name: str) -> int:
    """Return a counter of PrefillStats, 0 where there is none."""
    value = stats.get(name) if isinstance(stats, dict) else None
    return value if isinstance(value, int) else 0
