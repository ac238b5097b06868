"""The simulated engine's loop: messages in, one message out per step, each step on time."""

import logging
import os
import select
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec
import zmq

from nodeserve.clock import MonotonicClock, unix_now_s
from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.calls import answer
from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.simulated.sizing import Sizing
from nodeserve.engine.simulated.tokens import Vocabulary
from nodeserve.errors import InvariantError
from nodeserve.perf_model.latency import step_s

_LOG: Final = logging.getLogger(__name__)

OUTPUT_HIGH_WATER: Final = 4
"""Steps that may wait unsent. An engine without step time would otherwise run far ahead of the
gateways, and an abort would come thousands of tokens too late."""

_MAX_UNSENT_ANSWERS: Final = 256
_LOOK_UP_S: Final = 0.5
"""How often an engine that waits for a lease to end, or for its peer, looks up."""

_IDLE_S: Final = 60.0
_MAX_LAG_S: Final = 0.050
"""A step that ended late by less than this is made up for by the next ones."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """An engine's ends: requests in, outputs out, KV events out."""

    requests: "zmq.Socket[bytes]"
    outputs: "zmq.Socket[bytes]"
    kv_events: "zmq.Socket[bytes]"


class EngineLoop:
    """Serves requests from ``start`` of the engine until it is told to stop.

    A peer that does not read its outputs stops the steps, and nothing else: aborts and the end
    are still taken notice of.

    Attributes:
        steps: Turns of the loop with work, also those that could only wait.
    """

    def __init__(self, sizing: Sizing, sockets: Sockets, stop_fd: int) -> None:
        """Own nothing: who made the sockets closes them. ``stop_fd`` readable means stop."""
        self._sizing = sizing
        self._limits = sizing.limits
        self._sockets = sockets
        self._stop_fd = stop_fd
        self._request_fd = int(sockets.requests.getsockopt(zmq.FD))
        self._output_fd = int(sockets.outputs.getsockopt(zmq.FD))
        self._clock = MonotonicClock()
        self._vocabulary = Vocabulary(sizing.shape.vocab_size, sizing.shape.special_token_ids)
        self._encoder = wire.OutputsEncoder(sizing.limits.generation)
        self._scheduler = Scheduler(sizing.limits)
        self._outbox: deque[bytes] = deque()
        self._is_stopped = False
        self._num_added = 0
        self._num_event_messages = 0
        self._step_end_s = 0.0
        self._said_load = (0, 0.0)
        self.steps = 0

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return self._scheduler.num_requests

    def run(self) -> None:
        """Serve until ``stop_fd`` is readable."""
        scheduler = self._scheduler
        while not self._is_stopped:
            self._receive()
            now_s = self._clock.now_s()
            if scheduler.plan(now_s):
                self._pace(now_s)
                self._finish_step()
                self.steps += 1
            else:
                self._publish_kv_events()
                self._say_what_is_free(now_s)
                self._flush()
                self._rest(now_s)

    def stop(self) -> None:
        """End ``run`` at its next turn. Any thread, also a signal handler."""
        self._is_stopped = True
        os.eventfd_write(self._stop_fd, 1)

    # ------------------------------------------------------------------------------- steps

    def _pace(self, now_s: float) -> None:
        """Wait until the planned step is over, taking in messages meanwhile."""
        scheduler, speedup = self._scheduler, self._limits.speedup
        if speedup == float("inf"):
            return
        duration_s = step_s(self._sizing.profile, scheduler.step_work()) / speedup
        is_late = now_s - self._step_end_s < _MAX_LAG_S
        begin_s = self._step_end_s if is_late else now_s
        self._step_end_s = begin_s + duration_s + scheduler.pull_s
        while not self._is_stopped:
            left_s = self._step_end_s - self._clock.now_s()
            if left_s <= 0:
                return
            self._wait(left_s)
            self._receive()

    def _finish_step(self) -> None:
        now_s = self._clock.now_s()
        rows = self._scheduler.finish_step(now_s)
        self._publish_kv_events()
        if rows:
            self._say(rows, now_s)
        self._flush()

    def _say(self, rows: list[wire.Row], now_s: float) -> None:
        scheduler = self._scheduler
        self._said_load = (scheduler.num_requests, scheduler.kv_usage)
        self._outbox.append(self._encoder.step(rows, scheduler.take_stats(), now_s))

    def _say_what_is_free(self, now_s: float) -> None:
        """After an abort or a lease's end without a step, say what the next one would have."""
        scheduler = self._scheduler
        if not scheduler.num_requests and self._said_load != (0, scheduler.kv_usage):
            self._say([], now_s)

    def _rest(self, now_s: float) -> None:
        """Wait for something to do when no request can run."""
        next_load_s = self._scheduler.handoffs.next_load_s
        self._step_end_s = 0.0
        if self._scheduler.num_requests:
            self.steps += 1
        if next_load_s is not None:
            self._wait(min(_LOOK_UP_S, max(0.0, next_load_s - now_s)))
        elif self._scheduler.handoffs.num_leases or self._scheduler.num_requests:
            self._wait(_LOOK_UP_S)
        else:
            self._wait(_IDLE_S)

    def _wait(self, at_most_s: float, *more_fds: int) -> None:
        """Sleep until a message, the end or the time comes; to the microsecond, unlike poll."""
        ready, _, _ = select.select([self._request_fd, self._stop_fd, *more_fds], [], [], at_most_s)
        if self._stop_fd in ready:
            os.eventfd_read(self._stop_fd)
            self._is_stopped = True

    # ---------------------------------------------------------------------------- messages

    def _receive(self) -> None:
        """Take in all messages that have come; their sign is gone only when none is left."""
        requests = self._sockets.requests
        while int(requests.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = requests.recv_multipart(zmq.NOBLOCK)
            try:
                self._take(frames)
            except (msgspec.MsgspecError, InvariantError, IndexError) as error:
                _LOG.warning(
                    "frame_dropped kind=%r bytes=%d cause=%r",
                    frames[0][:1],
                    sum(map(len, frames)),
                    str(error),
                )

    def _take(self, frames: list[bytes]) -> None:
        kind, payload = frames[0], frames[1]
        if kind == wire.ADD:
            self._take_request(payload)
        elif kind == wire.ABORT:
            self._scheduler.abort(wire.decode_abort(payload))
        elif kind == wire.UTILITY:
            call = wire.decode_utility(payload)
            now_s = self._clock.now_s()
            answered = answer(call, self._scheduler, now_s)
            self._outbox.append(
                self._encoder.utility(call.call_id, answered.value, answered.failure, now_s=now_s)
            )
        else:
            _LOG.debug("message_ignored kind=%r", kind)

    def _take_request(self, payload: bytes) -> None:
        try:
            request = wire.decode_request(payload)
            refusal = _refusal(request)
            if refusal is None:
                self._add(request)
            else:
                self._refuse(request.request_id, refusal)
        except msgspec.MsgspecError:
            self._refuse(wire.decode_name(payload).request_id, wire.FINISH_ERROR)
            raise

    def _refuse(self, request_id: str, finish_reason: int) -> None:
        row = wire.end_row(request_id, finish_reason)
        self._outbox.append(self._encoder.step([row], None, self._clock.now_s()))

    def _add(self, request: wire.Request) -> None:
        now_s = self._clock.now_s()
        self._num_added += 1
        sequence = Sequence(
            request,
            self._vocabulary,
            max_model_len=self._sizing.max_model_len,
            order=self._num_added,
        )
        if sequence.is_complete:
            row = wire.end_row(sequence.request_id, wire.FINISH_LENGTH)
            sequence.add_end(row)
            self._outbox.append(self._encoder.step([row], None, now_s))
        else:
            self._scheduler.add(sequence, now_s)

    def _flush(self) -> None:
        """Send what is to be sent; wait for a peer that does not take it."""
        outputs = self._sockets.outputs
        while self._outbox and not self._is_stopped:
            if int(outputs.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
                outputs.send(self._outbox.popleft(), zmq.NOBLOCK)
                continue
            self._wait(_LOOK_UP_S, self._output_fd)
            self.steps += 1
            if len(self._outbox) < _MAX_UNSENT_ANSWERS:
                self._receive()

    def _publish_kv_events(self) -> None:
        events = self._scheduler.take_kv_events()
        if events:
            payload = wire.encode_kv_events(events, self._limits.block_size, unix_now_s())
            number = self._num_event_messages.to_bytes(8, "big")
            self._num_event_messages += 1
            self._sockets.kv_events.send_multipart((b"", number, payload), zmq.NOBLOCK)


def _refusal(request: wire.Request) -> int | None:
    """Return the finish reason of a request that this engine does not run."""
    if request.abort_immediately:
        return wire.FINISH_ABORT
    if request.sampling_params is None or not request.prompt_token_ids:
        return wire.FINISH_ERROR
    return None
