"""The simulated engine between its sockets: messages in, a step at a time, messages out.

Starts nothing, waits for nothing and reads no clock; ``loop`` does that for a live engine.
"""

from collections import deque
from typing import Final

import msgspec

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.batch import Unrecorded
from nodeserve.engine.simulated.calls import answer
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.simulated.tier import Tier
from nodeserve.engine.simulated.tokens import Vocabulary

KV_EVENT_TOPIC: Final = b""


class EngineCore:
    """One engine's requests and what it has to say.

    Call ``take`` for each message; ``scheduler.plan`` to begin a step and ``finish_step`` to
    end it. Where ``plan`` finds nothing to compute, call ``say_what_is_free`` instead.

    Attributes:
        scheduler: Its requests, blocks and leases.
        outbox: Messages for its front end, oldest first; who sends one takes it out.
    """

    def __init__(
        self,
        limits: Limits,
        vocabulary: Vocabulary,
        *,
        max_model_len: int,
        tier: Tier | None = None,
        changes: Unrecorded | None = None,
    ) -> None:
        self.scheduler = Scheduler(limits, tier, changes)
        self.outbox: deque[bytes] = deque()
        self._limits = limits
        self._vocabulary = vocabulary
        self._max_model_len = max_model_len
        self._encoder = wire.OutputsEncoder(limits.generation)
        self._num_added = 0
        self._num_event_messages = 0
        self._said_load = (0, 0.0)

    def take(self, frames: list[bytes], now_s: float) -> None:
        """Take one message of the front end; a kind that nobody knows is ignored.

        Raises:
            MsgspecError: It is not a message; whoever can be told of it was told.
            IndexError: It is not even a frame and its payload.
            InvariantError: Its front end used a request's id twice.
        """
        kind, payload = frames[0], frames[1]
        if kind == wire.ADD:
            self._take_request(payload, now_s)
        elif kind == wire.ABORT:
            self.scheduler.abort(wire.decode_abort(payload))
        elif kind == wire.UTILITY:
            call = wire.decode_utility(payload)
            said = answer(call, self.scheduler, now_s)
            self.outbox.append(
                self._encoder.utility(call.call_id, said.value, said.failure, now_s=now_s)
            )

    def finish_step(self, now_s: float) -> None:
        """End the step that ``scheduler.plan`` began."""
        rows = self.scheduler.finish_step(now_s)
        if rows:
            self._say(rows, now_s)

    def say_what_is_free(self, now_s: float) -> None:
        """After an abort or a lease's end without a step, say what the next one would have."""
        scheduler = self.scheduler
        if not scheduler.num_requests and self._said_load != (0, scheduler.kv_usage):
            self._say([], now_s)

    def take_kv_events(self, unix_s: float) -> list[bytes] | None:
        """Return the message that says what happened to the prefix cache since the last one."""
        events = self.scheduler.take_kv_events()
        if not events:
            return None
        payload = wire.encode_kv_events(events, self._limits.block_size, unix_s)
        number = self._num_event_messages.to_bytes(8, "big")
        self._num_event_messages += 1
        return [KV_EVENT_TOPIC, number, payload]

    def _say(self, rows: list[wire.Row], now_s: float) -> None:
        scheduler = self.scheduler
        self._said_load = (scheduler.num_requests, scheduler.kv_usage)
        self.outbox.append(self._encoder.step(rows, scheduler.take_stats(), now_s))

    def _take_request(self, payload: bytes, now_s: float) -> None:
        try:
            request = wire.decode_request(payload)
            refusal = _refusal(request)
            if refusal is None:
                self._add(request, now_s)
            else:
                self._refuse(request.request_id, refusal, now_s)
        except msgspec.MsgspecError:
            self._refuse(wire.decode_name(payload).request_id, wire.FINISH_ERROR, now_s)
            raise

    def _refuse(self, request_id: str, finish_reason: int, now_s: float) -> None:
        row = wire.end_row(request_id, finish_reason)
        self.outbox.append(self._encoder.step([row], None, now_s))

    def _add(self, request: wire.Request, now_s: float) -> None:
        self._num_added += 1
        sequence = Sequence(
            request, self._vocabulary, max_model_len=self._max_model_len, order=self._num_added
        )
        if sequence.is_complete:
            row = wire.end_row(sequence.request_id, wire.FINISH_LENGTH)
            sequence.add_end(row)
            self.outbox.append(self._encoder.step([row], None, now_s))
        else:
            self.scheduler.add(sequence, now_s)


def _refusal(request: wire.Request) -> int | None:
    """Return the finish reason of a request that this engine does not run."""
    if request.abort_immediately:
        return wire.FINISH_ABORT
    if request.sampling_params is None or not request.prompt_token_ids:
        return wire.FINISH_ERROR
    return None
