"""The simulated engine's loop: messages in, one message out per step, each step on time."""

import logging
import os
import select
from dataclasses import dataclass
from typing import Final

import msgspec
import zmq

from nodeserve.bus.sockets import is_readable, is_writable, recv_now
from nodeserve.clock import MonotonicClock, unix_now_s
from nodeserve.device.simulated_load import EngineLoad
from nodeserve.engine.simulated.batch import BatchChanges, Unrecorded
from nodeserve.engine.simulated.core import EngineCore
from nodeserve.engine.simulated.sizing import Sizing
from nodeserve.engine.simulated.tier import Tier
from nodeserve.engine.simulated.tokens import Vocabulary
from nodeserve.engine.step_log import StepRecorder
from nodeserve.errors import InvariantError
from nodeserve.perf_model.latency import step_s

_LOG: Final = logging.getLogger(__name__)

OUTPUT_HIGH_WATER: Final = 4
"""Steps that may wait unsent. An engine without step time would otherwise run far ahead of the
gateways, and an abort would come thousands of tokens too late."""

_MAX_UNSENT_ANSWERS: Final = 256
_LOOK_UP_S: Final = 0.5
"""How often an engine that waits for a lease or a long step to end, or for its peer, looks up."""

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

    def __init__(
        self,
        sizing: Sizing,
        sockets: Sockets,
        stop_fd: int,
        *,
        tier: Tier | None = None,
        recorder: StepRecorder | None = None,
        load: EngineLoad | None = None,
    ) -> None:
        """Own nothing: who made the sockets closes them. ``stop_fd`` readable means stop.

        ``load`` is told how busy its devices are; None where nobody simulates their power.
        """
        self._sizing = sizing
        self._limits = sizing.limits
        self._sockets = sockets
        self._stop_fd = stop_fd
        self._request_fd = int(sockets.requests.getsockopt(zmq.FD))
        self._output_fd = int(sockets.outputs.getsockopt(zmq.FD))
        self._clock = MonotonicClock()
        vocabulary = Vocabulary(sizing.shape.vocab_size, sizing.shape.special_token_ids)
        self._recorder = recorder
        self._load = load
        self._changes = Unrecorded() if recorder is None else BatchChanges()
        self._core = EngineCore(
            sizing.limits,
            vocabulary,
            max_model_len=sizing.max_model_len,
            tier=tier,
            changes=self._changes,
        )
        self._scheduler = self._core.scheduler
        self._outbox = self._core.outbox
        self._is_stopped = False
        self._step_end_s = 0.0
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
                self._step(now_s)
                self.steps += 1
            else:
                self._publish_kv_events()
                self._core.say_what_is_free(now_s)
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
            self._wait(min(left_s, _LOOK_UP_S))
            self._receive()
            if left_s > _LOOK_UP_S:
                self.steps += 1

    def _step(self, now_s: float) -> None:
        """Let the planned step take its time, and end it."""
        recorder = self._recorder
        if recorder is None:
            self._pace(now_s)
            ended_s = self._clock.now_s()
        else:
            recorder.began(now_s)
            joined, left = self._changes.take()
            chunks = self._scheduler.chunks()
            self._pace(now_s)
            ended_s = self._clock.now_s()
            recorder.ended(ended_s, joined=joined, left=left, once=chunks)
        if self._load is not None:
            self._load.add_busy(ended_s - now_s)
        self._core.finish_step(ended_s)
        self._publish_kv_events()
        self._flush()

    def _rest(self, now_s: float) -> None:
        """Wait for something to do when no request can run."""
        next_load_s = self._scheduler.handoffs.next_load_s
        tier_s = self._scheduler.tier.wake_s(now_s)
        self._step_end_s = 0.0
        if self._scheduler.num_requests:
            self.steps += 1
        if next_load_s is not None:
            at_most_s = min(_LOOK_UP_S, max(0.0, next_load_s - now_s))
        elif self._scheduler.handoffs.num_leases or self._scheduler.num_requests:
            at_most_s = _LOOK_UP_S
        else:
            at_most_s = _IDLE_S
        self._wait(min(at_most_s, max(0.0, tier_s - now_s)))

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
        while is_readable(requests):
            frames = recv_now(requests)
            try:
                self._core.take(frames, self._clock.now_s())
            except (msgspec.MsgspecError, InvariantError, IndexError) as error:
                _LOG.warning(
                    "frame_dropped kind=%r bytes=%d cause=%r",
                    frames[0][:1],
                    sum(map(len, frames)),
                    str(error),
                )

    def _flush(self) -> None:
        """Send what is to be sent; wait for a peer that does not take it."""
        outputs = self._sockets.outputs
        while self._outbox and not self._is_stopped:
            if is_writable(outputs):
                outputs.send(self._outbox.popleft(), zmq.NOBLOCK)
                continue
            self._wait(_LOOK_UP_S, self._output_fd)
            self.steps += 1
            if len(self._outbox) < _MAX_UNSENT_ANSWERS:
                self._receive()

    def _publish_kv_events(self) -> None:
        message = self._core.take_kv_events(unix_now_s())
        if message is not None:
            self._sockets.kv_events.send_multipart(message, zmq.NOBLOCK)
