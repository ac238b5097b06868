"""A scripted supervisor, engine and front end around a real dispatcher, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nodeserve.bus.channel import ControlServer
from nodeserve.bus.sockets import Reader, bind, listen_at, open_socket
from nodeserve.clock import MonotonicClock
from nodeserve.dispatcher.service import Dispatcher
from nodeserve.dispatcher.sockets import Sockets
from nodeserve.wire import control
from nodeserve.wire.control import WireFields, WorkerReady
from nodeserve.wire.engine_core import ABORT, ADD, UTILITY, identity_of
from nodeserve.wire.kinds import HANDOFF, Role
from nodeserve.wire.spawn import DispatcherSpec, TenantSpec

WITHIN_S = 10.0
BLOCK_SIZE = 4

FIELDS = WireFields(
    request=(
        *("request_id", "prompt_token_ids", "mm_features", "sampling_params", "pooling_params"),
        *("arrival_time", "lora_request", "cache_salt", "data_parallel_rank", "prompt_embeds"),
        *("prompt_is_token_ids", "client_index", "current_wave", "priority", "trace_headers"),
        *("resumable", "external_req_id", "reasoning_ended", "reasoning_parser_kwargs"),
        *("abort_immediately", "session_id", "kv_hints"),
    ),
    outputs=(
        *("engine_index", "outputs", "scheduler_stats", "timestamp", "utility_output"),
        *("finished_requests", "wave_complete", "start_wave", "weight_version"),
    ),
    output=(
        *("request_id", "new_token_ids", "new_logprobs", "new_prompt_logprobs_tensors"),
        *("pooling_output", "finish_reason", "stop_reason", "events", "kv_transfer_params"),
        *("ec_transfer_params", "trace_headers", "prefill_stats", "routed_experts"),
        *("num_nans_in_logits", "mm_cache_miss_hashes", "new_sampling_mask"),
        *("spec_decode_metrics", "prompt_token_id_logprobs"),
    ),
    vllm_version="0.32.0",
)

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode

PROBE = [ABORT, encode([])]
"""What asks an engine whether it is there."""


def request(wire_id: str, prompt: list[int] | None = None, **sampling: Any) -> list[Any]:
    """Return an EngineCoreRequest as vLLM writes it."""
    fields: list[Any] = [None] * len(FIELDS.request)
    fields[:6] = [wire_id, prompt or list(range(10)), None, {"max_tokens": 8} | sampling, None, 1.0]
    fields[11:14] = [0, 0, 0]
    fields[15], fields[19] = False, False
    return fields


def output(leg_id: str, tokens: list[int], **fields: Any) -> list[Any]:
    """Return an EngineCoreOutput as vLLM writes it."""
    row: list[Any] = [None] * len(FIELDS.output)
    row[:2] = [leg_id, tokens]
    row[FIELDS.output.index("num_nans_in_logits")] = 0
    for name, value in fields.items():
        row[FIELDS.output.index(name)] = value
    return row


def of(row: list[Any], name: str) -> Any:
    """Return a field of an EngineCoreOutput."""
    return row[FIELDS.output.index(name)]


def stats(running: int = 0, waiting: int = 0, usage: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return SchedulerStats as vLLM writes them."""
    looks = {"reset": False, "requests": 0, "queries": 0, "hits": 0, "hits_by_source": {}}
    return {
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_skipped_waiting_reqs": 0,
        "num_kv_fetch_reqs_by_stage": {},
        "kv_cache_usage": usage,
        "prefix_cache_stats": looks,
        "kv_cache_eviction_events": [],
        "spec_decoding_stats": None,
    } | more


def spec_in(directory: Path, **more: Any) -> DispatcherSpec:
    """Return a dispatcher's spec whose addresses are in ``directory``."""
    return DispatcherSpec(
        generation=1,
        runtime_dir=str(directory),
        control_address=f"ipc://{directory}/c",
        input_address=f"ipc://{directory}/i",
        output_address=f"ipc://{directory}/o",
        **more,
    )


class Inbox:
    """What has arrived on a socket."""

    def __init__(self, sock: "zmq.Socket[bytes]") -> None:
        self.waiting: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self.reader = Reader(sock, self.waiting.put_nowait)

    async def next(self) -> list[bytes]:
        """Return the next message."""
        async with asyncio.timeout(WITHIN_S):
            return await self.waiting.get()


class FakeEngine:
    """An engine that does what the test says."""

    def __init__(self, node: "FakeNode", generation: int, role: Role) -> None:
        self.node = node
        self.generation = generation
        self.role = role
        self.name = f"{role}-{generation}"
        self.features: tuple[str, ...] = (HANDOFF,)
        self.input = open_socket(node.context, zmq.DEALER, identity=identity_of(generation))
        self.input.connect(node.spec.input_address)
        self.push = open_socket(node.context, zmq.PUSH)
        self.push.connect(node.spec.output_address)
        self.inbox = Inbox(self.input)
        self.ready = {
            "max_model_len": 1000,
            "num_gpu_blocks": 100,
            "max_num_seqs": 8,
            "kv_cache_size_tokens": 400,
            "dp_stats_address": None,
            "dtype": "bfloat16",
            "data_parallel_size": 1,
            "data_parallel_rank": 0,
            "kv_events_config": {"endpoint": "ipc://x"},
        }

    async def attach(self, kv_events_endpoint: str | None = None) -> None:
        """Say hello on the wire and be attached."""
        self.input.send(encode(self.ready))
        self.node.attach_worker(self, kv_events_endpoint)
        await self.node.told(control.WorkerServing(generation=self.generation))

    async def next(self, kind: bytes) -> Any:
        """Return the payload of the next message but probes, which is of this kind."""
        frames = await self.inbox.next()
        while frames == PROBE:
            frames = await self.inbox.next()
        assert frames[0] == kind, frames
        return decode(frames[1])

    async def leg(self) -> tuple[str, list[Any]]:
        """Return the id and the fields of the request that comes next."""
        fields = await self.next(ADD)
        return fields[0], fields

    async def released(self) -> list[int]:
        """Return the leases that the next message releases."""
        _, _, method, args = await self.next(UTILITY)
        assert method == "nodeserve_release"
        leases: list[int] = args[0]
        return leases

    async def aborted(self) -> list[str]:
        """Return the ids that the next message aborts."""
        leg_ids: list[str] = await self.next(ABORT)
        return leg_ids

    def say(self, *outputs: list[Any], stats: Any = None, index: int | None = None) -> None:
        """Send one step's message."""
        index = self.generation if index is None else index
        self.push.send(encode([index, list(outputs), stats, 1.0, None, None, None, None, None]))

    def answer(self, call_id: int, result: Any, failure: str | None = None) -> None:
        """Answer a utility."""
        value = None if failure else [None, result]
        self.push.send(encode([self.generation, [], None, 1.0, [call_id, failure, value]]))

    def handoff(self, leg_id: str, lease_id: int = 1, **fields: Any) -> dict[str, Any]:
        """End a prefill leg with a handoff; returns its parameters."""
        params = {
            "do_remote_prefill": True,
            "engine": self.generation,
            "lease_id": lease_id,
            "num_tokens": 10,
            "num_bytes": 4096,
            "opaque": [1, {"x": "y"}],
        }
        self.say(output(leg_id, [7], finish_reason=1, kv_transfer_params=params, **fields))
        return params

    def vanish(self) -> None:
        """Close the sockets as a dead process does."""
        self.inbox.reader.close()
        self.push.close(linger=0)


class FakeGateway:
    """A front end that does what the test says."""

    def __init__(self, node: "FakeNode", generation: int, **tenant: Any) -> None:
        self.node = node
        self.generation = generation
        self.name = f"gw-{generation}"
        self.listener = f"listener-{generation}"
        self.tenant = TenantSpec(**tenant)
        base = f"ipc://{node.directory}/g{generation}"
        self.input_address, self.output_address = base + "i", base + "o"
        self.input = open_socket(node.context, zmq.ROUTER)
        bind(self.input, self.input_address)
        self.pull = open_socket(node.context, zmq.PULL, high_water_messages=10)
        bind(self.pull, self.output_address)
        self.ready = Inbox(self.input)
        self.inbox = Inbox(self.pull)

    async def attach(self) -> dict[str, Any]:
        """Be attached; returns the engine's ready response."""
        self.node.attach_gateway(self)
        identity, payload = await self.ready.next()
        assert identity == b"\0\0"
        ready: dict[str, Any] = decode(payload)
        return ready

    def send(self, kind: bytes, *frames: bytes) -> None:
        """Send raw frames to the engine."""
        self.input.send_multipart([b"\0\0", kind, *frames])
        self.ready.reader.look_again()

    def add(self, wire_id: str, prompt: list[int] | None = None, **sampling: Any) -> None:
        """Send a request."""
        self.send(ADD, encode(request(wire_id, prompt, **sampling)))

    def abort(self, *wire_ids: str) -> None:
        """Abort requests."""
        self.send(ABORT, encode(wire_ids))

    def call(self, call_id: int, method: str, *args: Any) -> None:
        """Call a utility."""
        self.send(UTILITY, encode((0, call_id, method, args)))

    async def message(self, wanted: Callable[[list[Any]], Any]) -> Any:
        """Return the next message for which ``wanted`` gives something, and that."""
        while True:
            message = decode((await self.inbox.next())[0])
            assert message[0] == 0
            found = wanted(message)
            if found:
                return found

    async def outputs(self) -> list[list[Any]]:
        """Return the outputs of the next message that has any."""
        rows: list[list[Any]] = await self.message(lambda message: message[1])
        return rows

    async def answer(self) -> list[Any]:
        """Return the next answer to a utility."""
        answer: list[Any] = await self.message(lambda message: len(message) > 4 and message[4])
        return answer


class FakeNode:
    """A running dispatcher and its supervisor."""

    def __init__(self, directory: Path, **spec: Any) -> None:
        self.directory = directory
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.spec = spec_in(directory, **{"utility_deadline_s": 0.2} | spec)
        self.control = ControlServer(listen_at(self.spec.control_address))
        self.dispatcher = Dispatcher(self.spec, MonotonicClock(), Sockets(self.spec))
        self._heard: list[control.Message] = []
        self._calls = 0

    def tell(self, message: control.Message) -> None:
        """Send a control message."""
        self.control.send(b"1", message)

    async def told(self, wanted: control.Message) -> None:
        """Wait until the dispatcher has said exactly this."""
        while wanted not in self._heard:
            await self.hear()
        self._heard.remove(wanted)

    async def hear(self) -> control.Message:
        """Take the dispatcher's next message."""
        async with asyncio.timeout(WITHIN_S):
            identity, message = await self.control.recv()
        assert identity == b"1"
        self._heard.append(message)
        return message

    async def status(self) -> control.DispatcherStatus:
        """Ask for the status."""
        self._calls += 1
        self.tell(control.ReportStatus(call_id=self._calls))
        while True:
            message = await self.hear()
            if isinstance(message, control.DispatcherStatus) and message.call_id == self._calls:
                self._heard.remove(message)
                return message

    async def status_with(
        self, wanted: Callable[[control.DispatcherStatus], bool]
    ) -> control.DispatcherStatus:
        """Ask for the status until it is as wanted: other sockets' messages may be on the way."""
        while True:  # each status has its own deadline, the test's timeout bounds them all
            status = await self.status()
            if wanted(status):
                return status

    def attach_worker(self, engine: FakeEngine, kv_events_endpoint: str | None = None) -> None:
        """Have a worker attached."""
        ready = WorkerReady(
            name=engine.name,
            generation=engine.generation,
            fields=FIELDS,
            ready=encode(engine.ready),
            block_size=BLOCK_SIZE,
            num_gpu_blocks=engine.ready["num_gpu_blocks"],
            kv_block_bytes=1024,
            max_model_len=engine.ready["max_model_len"],
            kv_events_endpoint=kv_events_endpoint,
            features=engine.features,
        )
        self.tell(
            control.AttachWorker(
                name=engine.name, generation=engine.generation, role=engine.role, ready=ready
            )
        )

    def attach_gateway(self, gateway: FakeGateway) -> None:
        """Have a gateway attached."""
        self.tell(
            control.AttachGateway(
                name=gateway.name,
                generation=gateway.generation,
                input_address=gateway.input_address,
                output_address=gateway.output_address,
                listener=gateway.listener,
                tenant=gateway.tenant,
            )
        )

    async def engine(self, generation: int, role: Role) -> FakeEngine:
        """Return an attached engine."""
        engine = FakeEngine(self, generation, role)
        await engine.attach()
        return engine

    async def gateway(self, generation: int, **tenant: Any) -> FakeGateway:
        """Return an attached gateway that has been told that the node is ready."""
        gateway = FakeGateway(self, generation, **tenant)
        await gateway.attach()
        await self.told(control.GatewayServing(generation=generation))
        return gateway


@asynccontextmanager
async def running_node(directory: Path, **spec: Any) -> AsyncIterator[FakeNode]:
    """Run a dispatcher as long as the block; a failure of a callback of it fails the test."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    node = FakeNode(directory, **spec)
    serving = asyncio.create_task(node.dispatcher.run(4321))
    try:
        await node.told(control.DispatcherReady(generation=1, pid=4321))
        yield node
        node.dispatcher.router.check()
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        node.dispatcher.close()
        node.control.close()
        node.context.destroy(linger=0)
    assert not failures, failures


async def pair(node: FakeNode) -> tuple[FakeEngine, FakeEngine, FakeGateway]:
    """Return a prefill worker, a decode worker and a gateway."""
    prefill = await node.engine(10, Role.PREFILL)
    decoder = await node.engine(11, Role.DECODE)
    return prefill, decoder, await node.gateway(20)


async def handed_over(
    prefill: FakeEngine, decoder: FakeEngine, gateway: FakeGateway, wire_id: str
) -> str:
    """Bring a request to its decode leg and return that leg's id."""
    gateway.add(wire_id)
    leg_id, _ = await prefill.leg()
    prefill.handoff(leg_id)
    leg_id, _ = await decoder.leg()
    return leg_id
