"""The hot path: one message per engine step, decoded once, patched in place, sent on.

What was said in one turn of the loop goes to a gateway in one message: it costs a gateway as much
to be woken and to take a message as to take some ten tokens. That is one step of each engine, or
several where the dispatcher is behind; then all that a request got becomes one output (``joins``).
Where that cannot be, as with log probabilities, there is a further message; all leave together at
the end of the turn.

All that depends on a leg's beginning or end is off the loop over outputs: in the middle of a
stream an output costs one lookup, one renaming and one append.
"""

from typing import Any, Final

from nodeserve.dispatcher.desk import RequestDesk
from nodeserve.dispatcher.gateway_link import GatewayLink
from nodeserve.dispatcher.joins import Joins
from nodeserve.dispatcher.loads import Loads, Push
from nodeserve.dispatcher.records import ClientRequest, Leg
from nodeserve.dispatcher.utilities import Utilities
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.ids import LegId
from nodeserve.router.messages import (
    LegFinished,
    LegKind,
    LegStarted,
    PrefillFinished,
)
from nodeserve.wire.engine_outputs import (
    ABORTED,
    ENGINE_DEAD,
    ERROR,
    FINISH_NAMES,
    LENGTH,
    STOP,
    Handoff,
    OutputCodec,
    counter_of,
    events_of,
)

_SECOND_ENGINE_EVENTS: Final = (1, 2)
"""QUEUED and SCHEDULED of a decode leg. A gateway would take the later QUEUED and the earlier
SCHEDULED, and find a negative queue time. Source: vllm/v1/metrics/stats.py (0.32)."""


class Steps:
    """Routes what engines say to the gateways that wait for it."""

    def __init__(
        self,
        desk: RequestDesk,
        gateways: dict[int, GatewayLink],
        utilities: Utilities,
        push: Push,
    ) -> None:
        self.loads = Loads(desk, gateways, push)
        self._desk = desk
        self._legs = desk.legs
        self._attached = desk.workers.attached
        self._gateways = gateways
        self._utilities = utilities
        self._traces = desk.traces
        self._counters = desk.traces.counters
        self._clock = desk.clock
        self._push = push
        self._num_messages = 0
        self._template: list[Any] | None = None
        self._stepped: set[int] = set()
        self._joins = Joins(gateways)

    def take(self, frames: list[bytes]) -> None:
        """Take one message off the engines' socket. Garbage is dropped and counted."""
        codecs = self._desk.codecs
        if codecs is None:
            self._counters.rejected_frames += 1
            return
        codec = codecs.outputs
        try:
            message = codec.decode(frames[0])
        except ValueError:
            # An engine that dies says so in a frame that is no message; the supervisor knows.
            if frames[0] != ENGINE_DEAD:
                self._counters.rejected_frames += 1
            return
        worker = self._attached.get(message[codec.engine_index])
        if worker is None:
            self._counters.stale_outputs += max(1, len(message[codec.outputs]))
            return
        answer = codec.field(message, codec.utility_output)
        if answer is not None:
            message[codec.utility_output] = None
            try:
                self._utilities.answered(worker, answer)
            except ValueError:
                self._counters.rejected_frames += 1
        aux = frames[1:]
        if aux:
            self._post([], urgent=False)
        urgent = self._take_step(worker, codec, message)
        if aux or urgent:
            self._post(aux, urgent=urgent)  # tensor frames belong to this one message

    def _take_step(self, worker: Worker, codec: OutputCodec, message: list[Any]) -> bool:
        """Put a step's outputs into batches; returns whether its statistics cannot wait."""
        outputs = message[codec.outputs]
        if outputs and worker.generation in self._stepped:
            self._take_further_step(worker, codec, message)
        elif outputs:
            self._stepped.add(worker.generation)
            self._route(worker, codec, outputs, self._clock.now_s())
        stats = codec.field(message, codec.scheduler_stats)
        urgent = stats is not None and self.loads.take(worker, bytes(stats))
        if codec.field(message, codec.finished_requests) is not None:
            message[codec.finished_requests] = None  # ids of legs, for balancing among engines
        message[codec.engine_index] = 0
        self._template = message
        return urgent

    def _take_further_step(self, worker: Worker, codec: OutputCodec, message: list[Any]) -> None:
        """Take outputs of an engine of which the batches hold a step already."""
        outputs, now_s = message[codec.outputs], self._clock.now_s()
        last = self._template
        if last is None or not codec.says_the_same(message, last):
            self._post([], urgent=False)
            self._route(worker, codec, outputs, now_s)
        else:
            self._joins.begin(codec)
            self._route(worker, codec, outputs, now_s)
            apart = self._joins.end(codec)
            if apart:
                self._post([], urgent=False)
            for batch, output in apart:
                batch.append(output)
        self._stepped.add(worker.generation)

    def _route(self, worker: Worker, codec: OutputCodec, outputs: list[Any], now_s: float) -> None:
        """Put each output into its gateway's batch under the client's id."""
        streams, id_at, tokens_at = worker.streams, codec.request_id, codec.new_token_ids
        finish_at = codec.finish_reason
        others: list[Any] = []
        total = 0
        self._num_messages += 1
        # One output stands for its message's inter-token latency.
        sample = outputs[self._num_messages % len(outputs)]
        for output in outputs:
            try:
                leg = streams.get(output[id_at])
                if leg is None or (len(output) > finish_at and output[finish_at] is not None):
                    others.append(output)
                    continue
                tokens = output[tokens_at]
                leg.sent.extend(tokens)
                total += len(tokens)
                if output is sample:
                    self._traces.itl.add(now_s - leg.last_s, now_s=now_s)
                leg.last_s = now_s
                output[id_at] = leg.wire_id
                leg.batch.append(output)
            except (TypeError, IndexError, KeyError, OverflowError):
                self._counters.rejected_frames += 1
        worker.generation_tokens += total
        if others:
            self._take_others(worker, codec, others, now_s)

    def _take_others(
        self, worker: Worker, codec: OutputCodec, outputs: list[Any], now_s: float
    ) -> None:
        """Take outputs that begin or end a leg, and those of legs that do not run there."""
        edges: list[tuple[Leg, list[Any]]] = []
        unknown: list[list[Any]] = []
        for output in outputs:
            if type(output) is not list:
                self._counters.rejected_frames += 1
                continue
            leg = self._legs.get(output[codec.request_id])
            if leg is None or leg.worker is not worker:
                unknown.append(output)
            else:
                edges.append((leg, output))
        if unknown:
            self._take_unknown(worker, codec, unknown)
        for leg, output in edges:
            if self._attached.get(worker.generation) is not worker:
                return  # given up over an earlier edge: the router has queued its requests again
            # An earlier edge may have brought this leg's end.
            if self._legs.get(leg.leg_id) is leg:
                self._take_edge(leg, codec, output, now_s)

    def _take_edge(self, leg: Leg, codec: OutputCodec, output: list[Any], now_s: float) -> None:
        """Take the first or the last output of a leg."""
        tokens = codec.field(output, codec.new_token_ids)
        finish = codec.field(output, codec.finish_reason)
        if not isinstance(tokens, list) or (finish is not None and type(finish) is not int):
            self._counters.rejected_frames += 1
            return
        if finish == ABORTED:
            # Legs that we abort are none of ours any more. An engine does this that stops.
            self._desk.give_up(leg.worker, "it ends requests that nobody has aborted")
            return
        if leg.kind is LegKind.PREFILL:
            self._take_prefill(leg, codec, output, finish, now_s)
            return
        request = leg.request
        try:
            leg.sent.extend(tokens)
        except (TypeError, OverflowError):
            self._counters.rejected_frames += 1
            return
        output[codec.request_id] = leg.wire_id
        leg.worker.generation_tokens += len(tokens)
        leg.last_s = now_s
        if not leg.started:
            self._start(leg, codec, output, now_s)
        if finish is None:
            leg.batch.append(output)
            return
        if codec.field(output, codec.kv_transfer_params) is not None:
            output[codec.kv_transfer_params] = None  # between engines; no client's business
        leg.batch.append(output)
        name = FINISH_NAMES[finish] if 0 <= finish < len(FINISH_NAMES) else str(finish)
        self._desk.end(request, name)
        self._desk.tell(LegFinished(leg.leg_id, request.output_tokens))

    def _start(self, leg: Leg, codec: OutputCodec, output: list[Any], now_s: float) -> None:
        """Take a decode or whole leg's first output; make it read like one engine's."""
        request = leg.request
        leg.started = True
        leg.worker.unstarted[leg.kind] -= 1
        leg.worker.streams[leg.leg_id] = leg
        if request.first_output_s is not None:
            self._start_again(leg, codec, output)
            return
        request.first_output_s = now_s
        self._traces.ttft.add(now_s - request.arrived_s, now_s=now_s)
        own = codec.field(output, codec.prefill_stats)
        if leg.kind is LegKind.DECODE:
            self._note_handoff(request, own, now_s)
            if request.prefill_stats is not None:
                codec.put(output, codec.prefill_stats, request.prefill_stats)
            if request.prefill_events is not None:
                later = events_of(codec.field(output, codec.events))
                kept = [e for e in later if e.get("type") not in _SECOND_ENGINE_EVENTS]
                codec.put(output, codec.events, request.prefill_events + kept)
        else:
            request.cached_tokens = counter_of(own, "num_cached_tokens")
        if request.add is not None and not request.add.resumable and not request.restorable:
            request.add, request.aux = None, []
        self._desk.tell(LegStarted(leg.leg_id))

    def _start_again(self, leg: Leg, codec: OutputCodec, output: list[Any]) -> None:
        """Take the first output behind restored ones; its gateway knows of one beginning only."""
        self._counters.resumed_requests += 1
        leg.request.resumed += 1
        for index in (codec.prefill_stats, codec.events):
            if codec.field(output, index) is not None:
                codec.put(output, index, None)
        self._desk.tell(LegStarted(leg.leg_id))

    def _note_handoff(self, request: ClientRequest, own: object, now_s: float) -> None:
        handoff = request.handoff
        if handoff is None:
            return
        request.handoff_s = now_s - request.prefilled_s
        self._traces.handoff.add(request.handoff_s, now_s=now_s)
        # An engine computes the prompt's last token in any case, and the others if it had to.
        if counter_of(own, "num_computed_tokens") > 1:
            self._counters.handoffs_failed += 1
            self._traces.bookings.handoff_failed(request)
        else:
            self._counters.handoffs_completed += 1
            self._counters.handoff_bytes += handoff.num_bytes

    def _take_prefill(
        self, leg: Leg, codec: OutputCodec, output: list[Any], finish: int | None, now_s: float
    ) -> None:
        request = leg.request
        stats = codec.field(output, codec.prefill_stats)
        if isinstance(stats, dict):
            request.prefill_stats = stats
            request.cached_tokens = counter_of(stats, "num_cached_tokens")
        events = events_of(codec.field(output, codec.events))
        if events:
            request.prefill_events = (request.prefill_events or []) + events
        if finish is None:
            return
        handoff = self._handoff(leg, codec, output)
        if handoff is not None:
            request.handoff = handoff
            request.prefilled_s = now_s
            self._desk.prefilled(leg)
            self._desk.tell(PrefillFinished(leg.leg_id, handoff.lease_id))
            return
        # Its one token is not the answer: a short one must not look like a finished one.
        reason = ERROR if finish in {STOP, LENGTH} else finish
        output[codec.request_id] = leg.wire_id
        output[codec.new_token_ids] = []
        output[codec.finish_reason] = reason
        codec.put(output, codec.kv_transfer_params, None)
        leg.batch.append(output)
        self._desk.end(request, FINISH_NAMES[reason] if reason < len(FINISH_NAMES) else "error")
        self._desk.tell(LegFinished(leg.leg_id, request.output_tokens))

    def _handoff(self, leg: Leg, codec: OutputCodec, output: list[Any]) -> Handoff | None:
        try:
            handoff = codec.handoff(output)
        except ValueError:
            self._counters.rejected_frames += 1
            return None
        if handoff is not None and handoff.engine != leg.worker.generation:
            self._counters.rejected_frames += 1
            return None
        return handoff

    def _take_unknown(self, worker: Worker, codec: OutputCodec, outputs: list[list[Any]]) -> None:
        """Take outputs of legs that do not run here, or not any more."""
        self._counters.stale_outputs += len(outputs)
        running = []
        for output in outputs:
            if codec.field(output, codec.kv_transfer_params) is not None:
                self._take_late_handoff(codec, output)
            leg_id = output[codec.request_id]
            ours = leg_id in self._legs  # of another worker, for which this one does not speak
            going_on = codec.field(output, codec.finish_reason) is None
            if not ours and going_on and isinstance(leg_id, str):
                running.append(leg_id)
        self._desk.unknown_outputs(worker, running)

    def _take_late_handoff(self, codec: OutputCodec, output: list[Any]) -> None:
        """A prefill leg ended as its abort was on the way: the router releases its lease."""
        try:
            handoff = codec.handoff(output)
        except ValueError:
            self._counters.rejected_frames += 1
            return
        leg_id = output[codec.request_id]
        if handoff is not None and isinstance(leg_id, str):
            self._desk.tell(PrefillFinished(LegId(leg_id), handoff.lease_id))

    def flush(self) -> None:
        """Send every gateway what this turn has brought for it."""
        self._post([], urgent=False)
        for gateway in list(self._gateways.values()):
            if gateway.has_posts:
                self._push(gateway)

    def _post(self, aux: list[bytes], *, urgent: bool) -> None:
        """Post the batches in the form of the last step's message.

        ``urgent`` statistics go now, and if nobody has a batch to the first gateway.
        """
        message, codecs = self._template, self._desk.codecs
        if message is None or codecs is None:
            return
        codec = codecs.outputs
        self._template = None
        self._stepped.clear()
        self._joins.clear()
        now_s = self._clock.now_s()
        self.loads.show(now_s, urgent=urgent)
        receivers = [gateway for gateway in self._gateways.values() if gateway.batch]
        if urgent and not receivers:
            receivers = [g for g in self._gateways.values() if g.serving][:1]
        for gateway in receivers:
            message[codec.outputs] = gateway.batch
            stats = self.loads.report(gateway)
            if stats is not None or len(message) > codec.scheduler_stats:
                codec.put(message, codec.scheduler_stats, stats)
            gateway.post(message, aux)
            gateway.batch.clear()
