import asyncio
import contextlib
import json
import signal

import pytest

from nodeserve.bus.channel import ControlChannel
from nodeserve.clock import MonotonicClock
from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    NodeEmptied,
    ProcessReady,
    ProcessSick,
    StopAsked,
    WorkerRouted,
)
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.children import Child, Exit
from nodeserve.supervisor.kernel import become_subreaper
from nodeserve.supervisor.notify import Notifier
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.service import Supervisor
from nodeserve.wire import control
from nodeserve.wire.control import WireFields
from nodeserve.wire.kinds import Role

DISPATCHER, WORKER = 2, 3
DEADLINE_S = 20


def config(folder, **listener):
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    front = {"name": "api", "socket": str(folder / "api.sock"), "gateway": GatewayKind.RUST}
    return NodeConfig(
        model=str(folder / "m"),
        served_model_names=("m",),
        runtime_dir=str(folder / "api.sock.d"),
        listeners=(Listener(**front | listener),),
        workers=(Worker(name="aggregated-0", role=Role.AGGREGATED),),
        simulate="1xh100-sxm",
    )


def supervisor(given, runtime):
    alone = Notifier({}, pid=1)
    return Supervisor(given, runtime, MonotonicClock(), notifier=alone, activated={})


class Hearing:
    """A supervisor that listens and starts nothing, and peers that speak to it."""

    def __init__(self, folder):
        self._runtime = RuntimeDirectory(folder / "api.sock.d")
        self.supervisor = supervisor(config(folder), self._runtime)
        self.supervisor._life.slots["dispatcher"].begin(Generation(DISPATCHER))
        self.supervisor._life.slots["aggregated-0"].begin(Generation(WORKER))
        self._listening = asyncio.create_task(self.supervisor._listen())
        self._peers = []

    def peer(self, identity):
        self._peers.append(ControlChannel(self._runtime.address("control"), identity))
        return self._peers[-1]

    async def next_event(self):
        async with asyncio.timeout(DEADLINE_S):
            return await self.supervisor._events.get()

    def has_event(self):
        return not self.supervisor._events.empty()

    async def close(self):
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        for peer in self._peers:
            peer.close()
        self.supervisor._gateways.close()
        self.supervisor._children.close()
        self.supervisor._server.close()
        self._runtime.close(keep_logs=False)


@contextlib.asynccontextmanager
async def hearing(folder):
    made = Hearing(folder)
    try:
        yield made
    finally:
        await made.close()


def ready(generation):
    return control.WorkerReady(
        name="aggregated-0",
        generation=generation,
        fields=WireFields(request=(), outputs=(), output=(), vllm_version="1"),
        ready=b"",
        block_size=16,
        num_gpu_blocks=1,
        kv_block_bytes=1,
        max_model_len=1,
    )


OF_THE_DISPATCHER = [
    control.WorkerServing(generation=WORKER),
    control.WorkerDrained(generation=WORKER),
    control.NodeDrained(),
    control.WorkerGivenUp(generation=WORKER, reason="it does not read"),
    control.GatewayGivenUp(generation=WORKER, reason="it does not read"),
]
OF_ANOTHER_CHILD = [
    ready(WORKER + 1),
    control.DispatcherReady(generation=DISPATCHER, pid=1),
    control.ChildFailed(generation=DISPATCHER, cause="no", retryable=False),
]
OF_THE_OPERATOR = [control.StatusRequest(), control.DrainRequest(worker="aggregated-0")]


@pytest.mark.parametrize(
    "message",
    [*OF_THE_DISPATCHER, *OF_ANOTHER_CHILD, *OF_THE_OPERATOR],
    ids=lambda message: type(message).__name__,
)
async def test_what_a_worker_may_not_say_is_refused_and_changes_nothing(tmp_path, caplog, message):
    async with hearing(tmp_path) as here:
        worker = here.peer(str(WORKER).encode())
        worker.send(message)
        worker.send(control.DispatcherReady(generation=WORKER, pid=1))  # of itself, so it is heard
        assert await here.next_event() == ProcessReady(Generation(WORKER))
        assert not here.has_event()
        assert f"control_message_refused from=b'{WORKER}' kind={type(message).__name__}" in (
            caplog.messages
        )
        assert here.supervisor._exits.causes == {}


@pytest.mark.parametrize(
    "message",
    [*OF_THE_DISPATCHER, *OF_ANOTHER_CHILD],
    ids=lambda message: type(message).__name__,
)
async def test_an_operator_cannot_speak_for_a_process(tmp_path, message):
    async with hearing(tmp_path) as here:
        operator = here.peer(b"c-operator")
        operator.send(message)
        operator.send(control.StatusRequest())
        async with asyncio.timeout(DEADLINE_S):
            reply = await operator.recv()
        assert isinstance(reply, control.StatusReply)
        assert not here.has_event()


async def test_the_dispatcher_is_heard_about_routing(tmp_path):
    async with hearing(tmp_path) as here:
        dispatcher = here.peer(str(DISPATCHER).encode())
        dispatcher.send(control.WorkerServing(generation=WORKER))
        dispatcher.send(control.NodeDrained())
        assert await here.next_event() == WorkerRouted(Generation(WORKER))
        assert await here.next_event() == NodeEmptied()


@pytest.mark.parametrize("kind", [control.WorkerGivenUp, control.GatewayGivenUp])
async def test_whom_the_dispatcher_gives_up_is_sick_with_its_reason(tmp_path, kind):
    async with hearing(tmp_path) as here:
        here.peer(str(DISPATCHER).encode()).send(kind(generation=7, reason="it does not read"))
        cause = "given up by the dispatcher: it does not read"
        assert await here.next_event() == ProcessSick(Generation(7), cause)


async def test_a_fenced_dispatcher_is_not_heard(tmp_path):
    async with hearing(tmp_path) as here:
        here.supervisor._life.slots["dispatcher"].begin(Generation(9))
        old, new = here.peer(str(DISPATCHER).encode()), here.peer(b"9")
        old.send(control.NodeDrained())
        old.send(control.DispatcherReady(generation=DISPATCHER, pid=1))
        assert await here.next_event() == ProcessReady(Generation(DISPATCHER))
        new.send(control.NodeDrained())
        assert await here.next_event() == NodeEmptied()


async def test_a_process_that_cannot_be_spawned_ends_the_first_start_with_its_cause(
    tmp_path, capsys
):
    become_subreaper()
    keys = str(tmp_path / "keys-that-are-gone")
    runtime = RuntimeDirectory(tmp_path / "api.sock.d")
    given = config(tmp_path, api_key_file=keys)
    async with asyncio.timeout(DEADLINE_S):
        assert await supervisor(given, runtime).run() == 78
    said = capsys.readouterr().err
    assert said.startswith("error: gateway gateway-api failed to start: ")
    assert keys in said
    runtime.close(keep_logs=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_exit_waits_for_the_cause_that_the_child_gave(tmp_path):
    async def body():
        async with hearing(tmp_path) as made:
            child = Child("aggregated-0", Generation(WORKER), 4711, -1, 0.0)
            made.supervisor._on_exit(child, Exit(78, None))
            cause = control.ChildFailed(generation=WORKER, cause="no such model", retryable=False)
            made.peer(str(WORKER).encode()).send(cause)
            event = await made.next_event()
            assert event.cause.startswith("no such model")
            assert not event.retryable

    asyncio.run(body())


def test_a_node_of_which_nothing_runs_ends_when_it_is_told_to_on_the_control_socket(tmp_path):
    async def body():
        runtime = RuntimeDirectory(tmp_path / "api.sock.d")
        alone = supervisor(config(tmp_path), runtime)
        alone._life.kept.phase = NodePhase.READY
        for slot in alone._life.slots.values():
            slot.life.phase = Phase.FAILED
        running = asyncio.create_task(alone.run())
        operator = ControlChannel(runtime.address("control"), b"c-operator")
        operator.send(control.DrainRequest())
        async with asyncio.timeout(DEADLINE_S):
            assert await running == 0
        operator.close()
        runtime.close(keep_logs=False)

    asyncio.run(body())


class Slow:
    """A spawner and its children: whoever is asked to end before it exists does not hear it."""

    def __init__(self, supervisor):
        self.life, self.alive, self.sent = supervisor._life, set(), []
        supervisor._children.close()
        supervisor._children = supervisor._spawner = self

    async def cleared(self, _name):
        pass

    async def spawn(self, _plan, generation):
        self.life.handle(StopAsked(), now_s=0.0)
        self.alive.add(generation)

    def get(self, generation):
        return generation if generation in self.alive else None

    def send(self, generation, number):
        if generation in self.alive:
            self.sent.append((generation, number))

    def close(self):
        pass


@pytest.mark.parametrize("name", ["aggregated-0", "gateway-api", "dispatcher"])
async def test_who_is_told_to_end_before_it_exists_ends_when_it_does(tmp_path, name):
    async with hearing(tmp_path) as here:
        slow = Slow(here.supervisor)
        slot = here.supervisor._life.slots[name]
        slot.begin(Generation(7))
        slot.life.phase = Phase.STARTING
        await here.supervisor._spawn(slot, Generation(7))
        assert slow.sent == [(7, signal.SIGKILL)]
