"""Start the incarnation of a slot: which fork server, which entry, told what."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from nodeserve.config.node import NodeConfig
from nodeserve.config.paths import LEDGER_NAME, state_directory
from nodeserve.engine.vllm import environment, preload
from nodeserve.errors import InvariantError
from nodeserve.gateway.launch import python_gateway, rust_gateway
from nodeserve.ids import Generation
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.supervisor import plan as plans
from nodeserve.supervisor.children import Children
from nodeserve.supervisor.exec_child import FIRST_FD, ExecSpec
from nodeserve.supervisor.forkserver import ForkRequest
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.tier_memory import TierMemory
from nodeserve.wire.kinds import ProcessKind

_ENCODE = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a node, which goes on over reloads.

    ``run_id`` tells its requests from those of others; it began at ``began_s`` on the monotonic
    clock.
    """

    run_id: str
    began_s: float

    @classmethod
    def of(cls, kept: str | None, began_s: float) -> "Run":
        """Return the run that ``kept`` names, or a new one."""
        return cls(kept or uuid.uuid4().hex, began_s)


class Spawner:
    """Knows how each kind of process is started."""

    def __init__(
        self,
        config: NodeConfig,
        runtime: RuntimeDirectory,
        children: Children,
        gateways: Gateways,
        run: Run,
        memory: TierMemory | None = None,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._children = children
        self._gateways = gateways
        self._run = run
        self._memory = memory

    async def spawn(self, plan: SlotPlan, generation: Generation) -> None:
        """Start one incarnation and return when its process exists; a fork server, when loaded.

        Raises:
            ConfigError: Its settings can't work.
            PeerError: The kernel or its fork server could not start it.
        """
        match plan.kind:
            case ProcessKind.FORKSERVER:
                await self._spawn_forkserver(plan, generation)
            case ProcessKind.DISPATCHER:
                spec = plans.dispatcher_spec(self._config, self._runtime, generation)
                entry = "nodeserve.dispatcher.main:run"
                await self._fork(
                    plan, generation, ForkRequest(name=plan.name, entry=entry, spec=_ENCODE(spec))
                )
            case ProcessKind.BLOCK_MANAGER:
                await self._spawn_block_manager(plan, generation)
            case ProcessKind.LEDGER:
                await self._spawn_ledger(plan, generation)
            case ProcessKind.MONITOR:
                monitor = plans.monitor_spec(
                    self._config, self._runtime, generation, run_began_s=self._run.began_s
                )
                await self._fork(
                    plan,
                    generation,
                    ForkRequest(
                        name=plan.name, entry="nodeserve.monitor.main:run", spec=_ENCODE(monitor)
                    ),
                )
            case ProcessKind.WORKER:
                await self._spawn_worker(plan, generation)
            case ProcessKind.GATEWAY:
                await self._spawn_gateway(plan, generation)
            case ProcessKind.SUPERVISOR:
                pass

    async def _fork(
        self, plan: SlotPlan, generation: Generation, request: ForkRequest, fds: Sequence[int] = ()
    ) -> None:
        await self._children.fork(plan.forkserver or plans.LIGHT, generation, request, fds)

    async def _spawn_forkserver(self, plan: SlotPlan, generation: Generation) -> None:
        base = plans.child_environment(os.environ)
        if plan.name == plans.HEAVY:
            modules: Sequence[str] = preload.modules()
            if plans.has_python_gateway(self._config):
                modules = (*modules, *plans.PYTHON_GATEWAY_MODULES)
            base |= environment.forkserver_environment()
        else:
            modules = plans.LIGHT_MODULES
        await self._children.start_forkserver(
            plan.name, generation, modules=modules, environment=base
        )

    async def _spawn_block_manager(self, plan: SlotPlan, generation: Generation) -> None:
        tiers, memory = self._config.tiers, self._memory
        if tiers is None or memory is None:
            raise InvariantError(f"{plan.name}: this node has no tier; report this bug")
        spec = plans.block_manager_spec(
            self._config,
            tiers,
            self._runtime,
            generation,
            arena_bytes=memory.arena_bytes,
            state_dir=state_directory(os.environ, os.getuid(), self._runtime.path),
        )
        entry = "nodeserve.block_manager.main:run"
        request = ForkRequest(name=plan.name, entry=entry, spec=_ENCODE(spec))
        await self._fork(plan, generation, request, memory.fds)

    async def _spawn_ledger(self, plan: SlotPlan, generation: Generation) -> None:
        spec = plans.ledger_spec(
            self._config,
            self._runtime,
            generation,
            run_id=self._run.run_id,
            db_path=state_directory(os.environ, os.getuid(), self._runtime.path) / LEDGER_NAME,
        )
        entry = "nodeserve.ledger.main:run"
        request = ForkRequest(name=plan.name, entry=entry, spec=_ENCODE(spec))
        await self._fork(plan, generation, request)

    async def _spawn_worker(self, plan: SlotPlan, generation: Generation) -> None:
        worker = next(worker for worker in self._config.workers if worker.name == plan.name)
        spec = plans.worker_spec(self._config, self._runtime, worker, generation)
        variables = {} if self._config.simulate else environment.worker_environment(spec)
        request = ForkRequest(
            name=plan.name,
            entry="nodeserve.worker.main:run",
            spec=_ENCODE(spec),
            environment=variables,
            cpus=worker.cpus,
        )
        await self._fork(plan, generation, request)

    async def _spawn_gateway(self, plan: SlotPlan, generation: Generation) -> None:
        listener = self._gateways.listener_of(plan.name)
        http_fd = self._gateways.http_fd(listener)
        launch = plans.gateway_launch(
            self._config, self._runtime, listener, generation, name=plan.name, http_fd=http_fd
        )
        if plan.forkserver == plans.HEAVY:
            forked = python_gateway(launch)
            request = ForkRequest(
                name=plan.name,
                entry=forked.entry,
                spec=_ENCODE(forked.spec),
                environment=dict(forked.env),
            )
            await self._fork(plan, generation, request, forked.fds)
            return
        described = rust_gateway(
            launch,
            input_fd=FIRST_FD + 1,
            output_fd=FIRST_FD + 2,
            environ=plans.child_environment(os.environ),
        )
        with self._gateways.internal_listeners(self._runtime, generation) as (inputs, outputs):
            spec = ExecSpec(argv=described.argv, environment=dict(described.env))
            request = ForkRequest(
                name=plan.name, entry="nodeserve.supervisor.exec_child:run", spec=_ENCODE(spec)
            )
            fds = [http_fd, inputs.fileno(), outputs.fileno()]
            await self._fork(plan, generation, request, fds)
