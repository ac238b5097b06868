"""A NodeLife, the answers of a well-behaved world, and how to read its commands."""

from nodeserve.lifecycle.messages import (
    AnnounceReady,
    EngineReady,
    NodeStarted,
    ProcessExited,
    ProcessReady,
    SpawnProcess,
    TellDispatcher,
    TerminateProcess,
    WorkerRouted,
)
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.wire.control import (
    DetachWorker,
    WireFields,
    WorkerReady,
)
from nodeserve.wire.kinds import ProcessKind, Role

PLANS = [
    SlotPlan("forkserver", ProcessKind.FORKSERVER),
    SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
    SlotPlan("prefill-0", ProcessKind.WORKER, "forkserver", Role.PREFILL),
    SlotPlan("decode-0", ProcessKind.WORKER, "forkserver", Role.DECODE),
    SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver"),
]


class Node:
    """A NodeLife and the answers of a well-behaved world."""

    def __init__(self, plans=PLANS):
        self.life = NodeLife(plans, Patience(drain_s=60, stop_s=10))
        self.now_s = 0.0

    def tell(self, event, at_s=None):
        self.now_s = self.now_s if at_s is None else at_s
        commands = self.life.handle(event, now_s=self.now_s)
        self.life.check()
        return commands

    def generation(self, name):
        return self.life.slots[name].generation

    def phase(self, name):
        return self.life.slots[name].life.phase

    def exits(self, name, *, cause="killed by SIGKILL", retryable=True, exit_code=137):
        return self.tell(ProcessExited(self.generation(name), cause, retryable, exit_code))

    def engine_ready(self, name, features=("handoff",)):
        ready = WorkerReady(
            name=name,
            generation=self.generation(name),
            fields=WireFields(request=(), outputs=(), output=(), vllm_version="1"),
            ready=b"",
            block_size=16,
            num_gpu_blocks=100,
            kv_block_bytes=1,
            max_model_len=100,
            features=features,
        )
        return self.tell(EngineReady(ready))

    def routed(self, name):
        return self.tell(WorkerRouted(self.generation(name)))

    def up(self):
        self.tell(NodeStarted())
        self.tell(ProcessReady(self.generation("forkserver")))
        self.tell(ProcessReady(self.generation("dispatcher")))
        for name in ("prefill-0", "decode-0"):
            self.engine_ready(name)
            self.routed(name)
        assert self.tell(ProcessReady(self.generation("gateway-api"))) == [AnnounceReady()]
        return self


def fenced_and_stopped(generation):
    message = DetachWorker(generation=generation, reason="it is stopped")
    return [TellDispatcher(message), TerminateProcess(generation)]


def spawned(commands):
    return [command.name for command in commands if isinstance(command, SpawnProcess)]


def told(commands):
    return [command.message for command in commands if isinstance(command, TellDispatcher)]
