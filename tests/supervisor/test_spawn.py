import os
import socket
import stat

import msgspec
import pytest

from nodeserve.config.node import (
    AccountingSettings,
    GatewayKind,
    Listener,
    NodeConfig,
    TierSettings,
    Worker,
)
from nodeserve.errors import ConfigError
from nodeserve.ids import Generation
from nodeserve.supervisor import plan as plans
from nodeserve.supervisor.exec_child import FIRST_FD, ExecSpec
from nodeserve.supervisor.gateways import Gateways
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.supervisor.spawn import Run, Spawner
from nodeserve.supervisor.tier_memory import TierMemory
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import (
    BlockManagerSpec,
    DispatcherSpec,
    LedgerSpec,
    MonitorSpec,
    PythonGatewaySpec,
    WorkerSpec,
)


def _name(fd):
    return socket.socket(fileno=os.dup(fd)).getsockname()


class RecordedChildren:
    """Starts nothing; keeps what it was asked for, and what kind of file each fd was then."""

    def __init__(self):
        self.forks, self.forkservers, self.fds = [], [], []

    async def start_forkserver(self, name, generation, *, modules, environment):
        self.forkservers.append((name, generation, tuple(modules), dict(environment)))

    async def fork(self, forkserver, generation, request, fds=()):
        self.fds.append(list(fds))
        kinds = [stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds]
        names = [_name(fd) for fd, is_socket in zip(fds, kinds, strict=True) if is_socket]
        self.forks.append((forkserver, generation, request, kinds, names))


class Stage:
    """A Spawner whose children are recorded; everything else is real."""

    def __init__(self, folder, **changes):
        given = {
            "model": "/models/m",
            "served_model_names": ("m",),
            "runtime_dir": str(folder / "api.sock.d"),
            "listeners": (
                Listener(name="api", socket=str(folder / "api.sock"), gateway=GatewayKind.RUST),
            ),
            "workers": (
                Worker(name="prefill-0", role=Role.PREFILL, cpus=(0, 2), args={"block_size": 32}),
                Worker(name="decode-0", role=Role.DECODE, tp=2, gpu_uuids=("GPU-a", "GPU-b")),
            ),
            "simulate": "2xh100-sxm",
        }
        self.config = NodeConfig(**given | changes)
        self.runtime = RuntimeDirectory(folder / "api.sock.d")
        self.gateways = Gateways(self.config, lambda event: None, {})
        self.children = RecordedChildren()
        self.memory = TierMemory.of(self.config.tiers, None)
        makers = self.children, self.gateways
        self.spawner = Spawner(self.config, self.runtime, *makers, Run("r1", 5.0), self.memory)
        self.plans = {slot.name: slot for slot in plans.slot_plans(self.config)}

    async def spawn(self, name, generation=7):
        await self.spawner.spawn(self.plans[name], Generation(generation))

    async def forked(self, name):
        await self.spawn(name)
        [(home, generation, request, *fds)] = self.children.forks
        assert (generation, request.name) == (7, name)
        return home, request, *fds

    def close(self):
        self.gateways.close()
        if self.memory is not None:
            self.memory.close()
        self.runtime.close(keep_logs=False)


@pytest.fixture
def stage(tmp_path):
    made = []

    def make(**changes):
        made.append(Stage(tmp_path, **changes))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_a_ledger_and_a_monitor_know_of_the_run(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    here = stage(accounting=AccountingSettings(zone="DEU", node="n1"))
    await here.spawn(plans.LEDGER)
    await here.spawn(plans.MONITOR)
    (_, _, ledger, *_), (_, _, monitor, *_) = here.children.forks
    assert ledger.entry == "nodeserve.ledger.main:run"
    told = msgspec.msgpack.decode(ledger.spec, type=LedgerSpec)
    assert (told.run_id, told.node, told.zone) == ("r1", "n1", "DEU")
    assert told.db_path == str(tmp_path / "state" / "ledger.db")
    assert monitor.entry == "nodeserve.monitor.main:run"
    watched = msgspec.msgpack.decode(monitor.spec, type=MonitorSpec)
    assert (watched.run_began_s, watched.simulate) == (5.0, "2xh100-sxm")
    assert watched.ledger_address == told.ledger_address


async def test_the_light_fork_server_loads_what_its_children_run_and_no_vllm(stage):
    here = stage()
    await here.spawn(plans.LIGHT)
    [(name, generation, modules, environment)] = here.children.forkservers
    assert (name, generation, modules) == ("forkserver", 7, plans.LIGHT_MODULES)
    assert environment["PATH"]
    assert "VLLM_TARGET_DEVICE" not in environment


@pytest.mark.vllm
async def test_the_heavy_fork_server_loads_the_gateway_where_one_needs_it(stage, tmp_path):
    python = Listener(name="api", socket=str(tmp_path / "b.sock"), gateway=GatewayKind.PYTHON)
    here = stage(listeners=(python,))
    await here.spawn(plans.HEAVY)
    [(name, _, modules, environment)] = here.children.forkservers
    assert name == "forkserver-vllm"
    assert modules[-len(plans.PYTHON_GATEWAY_MODULES) :] == plans.PYTHON_GATEWAY_MODULES
    assert "nodeserve.engine.vllm.engine" in modules
    assert environment["VLLM_TARGET_DEVICE"]


async def test_the_dispatcher_is_light(stage):
    home, request, *_ = await stage().forked("dispatcher")
    assert (home, request.entry) == ("forkserver", "nodeserve.dispatcher.main:run")
    assert msgspec.msgpack.decode(request.spec, type=DispatcherSpec).generation == 7


async def test_a_simulated_worker_is_light_and_bound_to_its_cpus(stage):
    home, request, *_ = await stage().forked("prefill-0")
    assert (home, request.entry) == ("forkserver", "nodeserve.worker.main:run")
    assert (request.cpus, request.environment) == ((0, 2), {})
    spec = msgspec.msgpack.decode(request.spec, type=WorkerSpec)
    assert (spec.name, spec.generation, spec.role) == ("prefill-0", 7, Role.PREFILL)
    assert spec.engine.args == {"block_size": 32}


async def test_a_real_worker_is_forked_where_vllm_is_loaded_and_sees_its_own_gpus(stage):
    home, request, *_ = await stage(simulate=None).forked("decode-0")
    assert home == "forkserver-vllm"
    assert request.environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert msgspec.msgpack.decode(request.spec, type=WorkerSpec).engine.tp == 2


async def test_a_python_gateway_gets_the_socket_of_its_listener(stage, tmp_path):
    path = str(tmp_path / "b.sock")
    here = stage(listeners=(Listener(name="api", socket=path, gateway=GatewayKind.PYTHON),))
    home, request, kinds, names = await here.forked("gateway-api")
    assert (home, request.entry) == ("forkserver-vllm", "nodeserve.gateway.python_server:run")
    assert (kinds, names) == ([True], [path])
    spec = msgspec.msgpack.decode(request.spec, type=PythonGatewaySpec)
    assert (spec.generation, spec.listen_address) == (7, path)


@pytest.mark.vllm
async def test_a_rust_gateway_adopts_three_sockets_under_fixed_numbers(stage, tmp_path):
    home, request, kinds, names = await stage().forked("gateway-api")
    inside = tmp_path / "api.sock.d"
    assert (home, request.entry) == ("forkserver", "nodeserve.supervisor.exec_child:run")
    assert kinds == [True] * 3
    assert names == [
        str(tmp_path / "api.sock"),
        str(inside / "gw-7-in.sock"),
        str(inside / "gw-7-out.sock"),
    ]
    argv = msgspec.msgpack.decode(request.spec, type=ExecSpec).argv
    for place, option in enumerate(("--listen-fd", "--input-listener-fd", "--output-listener-fd")):
        assert argv[argv.index(option) + 1] == str(FIRST_FD + place)


async def test_a_key_file_that_has_gone_is_said_and_starts_nothing(stage, tmp_path):
    keys = tmp_path / "keys"
    listener = Listener(
        name="api",
        socket=str(tmp_path / "b.sock"),
        gateway=GatewayKind.PYTHON,
        api_key_file=str(keys),
    )
    here = stage(listeners=(listener,))
    with pytest.raises(ConfigError, match=str(keys)):
        await here.spawn("gateway-api")
    assert here.children.forks == []


async def test_every_block_manager_gets_the_same_memory(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    made = stage(tiers=TierSettings(host_bytes=64 << 20))
    await made.spawn("block-manager", 7)
    await made.spawn("block-manager", 8)
    first, second = made.children.forks
    home, generation, request, kinds, _ = first
    assert (home, generation, kinds) == ("forkserver", 7, [False, False])
    assert request.entry == "nodeserve.block_manager.main:run"
    spec = msgspec.msgpack.decode(request.spec, type=BlockManagerSpec)
    assert (spec.generation, spec.arena_bytes) == (7, 64 << 20)
    assert spec.state_dir == str(tmp_path / "state")
    assert second[1] == 8
    assert made.children.fds[0] == made.children.fds[1]
