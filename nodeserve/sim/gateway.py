"""A gateway process and the clients behind it: what they are sent is compared, token by token."""

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from nodeserve.engine.simulated.tokens import stream_key
from nodeserve.engine.simulated.wire import (
    FIELDS,
    FINISH_ABORT,
    FINISH_ERROR,
    FINISH_REASON,
    TOKENS,
)
from nodeserve.ids import Generation
from nodeserve.sim.faults import MAX_MODEL_LEN, PlannedRequest
from nodeserve.sim.links import Link
from nodeserve.sim.process import Process
from nodeserve.sim.story import RuleBrokenError
from nodeserve.sim.worker import VOCABULARY
from nodeserve.wire.codec import encode
from nodeserve.wire.engine_core import ABORT, ADD

if TYPE_CHECKING:
    from nodeserve.sim.data_plane import GatewayPort
    from nodeserve.sim.node import SimNode

_decode = msgspec.msgpack.Decoder().decode


class Client:
    """One client's request and what came of it.

    ``ending`` is None until it has had its one end. ``expected`` are the answer's tokens, which
    depend on nothing but the request.
    """

    def __init__(self, planned: PlannedRequest) -> None:
        self.planned = planned
        self.tokens: list[int] = []
        self.ending: str | None = None
        key = stream_key(planned.prompt(), planned.number)
        self.expected = VOCABULARY.chunk(key, 0)[: planned.max_tokens]

    def __str__(self) -> str:
        return f"request {self.planned.number}"

    def end(self, how: str) -> None:
        """Note its end."""
        if self.ending is not None:
            raise RuleBrokenError("a request ends once", f"{self}: {self.ending}, then {how}")
        self.ending = how

    def payload(self, wire_id: str) -> bytes:
        """Return the EngineCoreRequest that its gateway makes of it."""
        planned = self.planned
        sampling: dict[str, object] = {"max_tokens": planned.max_tokens, "seed": planned.number}
        if planned.strict:
            sampling["prompt_logprobs"] = 0
        fields: list[object] = [None] * len(FIELDS.request)
        fields[:6] = [wire_id, planned.prompt(), None, sampling, None, 1.0]
        fields[11:14] = [0, 0, planned.priority]
        fields[15], fields[19] = False, False
        return encode(fields)


class SimGateway(Process):
    """One gateway process.

    Attributes:
        is_serving: Whether it takes clients' requests.
        is_stuck: Whether it reads nothing.
    """

    def __init__(self, node: "SimNode", name: str, listener: int, generation: Generation) -> None:
        super().__init__(node, name, generation)
        self.listener = listener
        self.is_serving = False
        self.is_stuck = False
        self._is_ending = False
        self._clients: dict[str, Client] = {}
        self._over: set[str] = set()
        self._requests: Link[list[bytes]] | None = None
        self._port: GatewayPort | None = None
        self._unread: deque[list[bytes]] = deque()

    # ------------------------------------------------------------------------ dispatcher

    def engine_connected(self, requests: Link[list[bytes]], port: "GatewayPort") -> None:
        """Be connected to by the dispatcher."""
        self._requests, self._port = requests, port

    def engine_is_ready(self) -> None:
        """Take the engine's ready message: serve, and soon answer the supervisor's probes."""
        if self.alive and not self.is_serving:
            self.is_serving = True
            self.node.queue.after(self.node.draw.uniform(0.0, 0.1), self._answer_probe)
            self.node.gateway_serves(self)

    def engine_closed(self, port: "GatewayPort") -> None:
        """Notice that the dispatcher has let go of it."""
        if self._port is port:
            self._requests = self._port = None

    def _answer_probe(self) -> None:
        if self.alive:
            self.node.supervisor.probed(self)

    # --------------------------------------------------------------------------- clients

    def take(self, client: Client) -> None:
        """Take a client's request. Ids repeat from gateway to gateway, as they may."""
        wire_id = f"c{len(self._clients) + len(self._over)}"
        self._clients[wire_id] = client
        self.node.story.tell("{} sends {} to the dispatcher", self, client)
        if self._requests is not None:
            self._requests.send([ADD, client.payload(wire_id)])

    def leave(self, client: Client) -> None:
        """Let a client go away; late outputs for it are no mistake."""
        for wire_id, other in list(self._clients.items()):
            if other is client:
                self._abort(wire_id, client)

    def _abort(self, wire_id: str, client: Client) -> None:
        client.end("aborted")
        self.node.story.tell("{} goes away with {} tokens", client, len(client.tokens))
        del self._clients[wire_id]
        self._over.add(wire_id)
        if self._requests is not None:
            for _ in range(self.times()):
                self._requests.send([ABORT, encode([wire_id])])
        self._end_when_empty()

    # --------------------------------------------------------------------------- outputs

    def on_outputs(self, frames: list[bytes]) -> None:
        """Take an EngineCoreOutputs message."""
        if self.alive:
            for output in _decode(frames[0])[1]:
                self._take_output(output)

    def _take_output(self, output: list[object]) -> None:
        wire_id, tokens = output[0], output[TOKENS]
        client = self._clients.get(str(wire_id))
        if client is None:
            if wire_id not in self._over:
                raise RuleBrokenError("nobody asked", f"{self} was sent {output}")
            return
        if not isinstance(tokens, list):
            raise RuleBrokenError("outputs are lists", f"{self} was sent {output}")
        self._compare(client, tokens)
        finish = output[FINISH_REASON] if len(output) > FINISH_REASON else None
        if finish is not None:
            self._end(str(wire_id), client, finish)
        elif len(client.tokens) >= (client.planned.abort_after or MAX_MODEL_LEN):
            self._abort(str(wire_id), client)

    @staticmethod
    def _compare(client: Client, tokens: list[int]) -> None:
        before = len(client.tokens)
        client.tokens += tokens
        expected = client.expected[before : before + len(tokens)]
        if tokens != expected:
            raise RuleBrokenError(
                "tokens are contiguous",
                f"{client} had {before} tokens and then got {tokens}, not {expected}",
            )

    def _end(self, wire_id: str, client: Client, finish: object) -> None:
        del self._clients[wire_id]
        self._over.add(wire_id)
        if finish == FINISH_ERROR:
            self.node.client_failed(client)
            client.end("failed")
        elif finish == FINISH_ABORT or len(client.tokens) != client.planned.max_tokens:
            raise RuleBrokenError(
                "an answer is whole",
                f"{client} ended with reason {finish} after {len(client.tokens)} of"
                f" {client.planned.max_tokens} tokens",
            )
        else:
            client.end("answered")
        self.node.story.tell("{} has {}", client, client.ending)
        self._end_when_empty()

    # ------------------------------------------------------------------------------- end

    def terminate(self) -> None:
        """Take SIGTERM: end when every client has its answer."""
        self._is_ending = True
        self._end_when_empty()

    def _end_when_empty(self) -> None:
        if self._is_ending and not self._clients:
            super().terminate()

    def unstick(self) -> None:
        """Read again."""
        self.is_stuck = False
        if self._port is not None:
            self._port.unstuck()

    def ended(self) -> None:
        """End the connections of all clients."""
        for client in self._clients.values():
            self.node.story.tell("{} is cut off", client)
            client.end("cut off")
        self._clients.clear()
        if self._requests is not None:
            self._requests.cut()
