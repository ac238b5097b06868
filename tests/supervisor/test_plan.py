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
from nodeserve.errors import InvariantError
from nodeserve.ids import Generation
from nodeserve.supervisor import plan
from nodeserve.supervisor.runtime import RuntimeDirectory
from nodeserve.wire.kinds import ProcessKind, Role
from nodeserve.wire.spawn import DiskTierSpec, WorkerSpec

RUST = Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST)
PYTHON = Listener(name="full", socket="/run/b.sock", gateway=GatewayKind.PYTHON, gateways=2)


def config(*, listeners=(RUST,), simulate=None):
    return NodeConfig(
        model="/models/m",
        served_model_names=("m",),
        runtime_dir="/run/a.sock.d",
        listeners=listeners,
        workers=(
            Worker(name="prefill-0", role=Role.PREFILL, cpus=(0,), args={"block_size": 32}),
            Worker(name="decode-0", role=Role.DECODE, tp=2, gpu_uuids=("GPU-a", "GPU-b")),
        ),
        simulate=simulate,
        speedup=2.0,
    )


def homes(a_config):
    return {slot.name: slot.forkserver for slot in plan.slot_plans(a_config)}


def test_simulated_workers_behind_rust_need_no_vllm_at_all():
    assert homes(config(simulate="8xh100-sxm")) == {
        "forkserver": None,
        "dispatcher": "forkserver",
        "prefill-0": "forkserver",
        "decode-0": "forkserver",
        "gateway-api": "forkserver",
    }


def test_real_workers_and_python_gateways_are_forked_where_vllm_is_loaded():
    found = homes(config(listeners=(RUST, PYTHON)))
    assert found["forkserver-vllm"] is None
    assert found["decode-0"] == "forkserver-vllm"
    assert found["gateway-full-0"] == found["gateway-full-1"] == "forkserver-vllm"
    assert found["gateway-api"] == found["dispatcher"] == "forkserver"


def test_only_workers_have_a_role():
    roles = {slot.name: slot.role for slot in plan.slot_plans(config()) if slot.role}
    assert roles == {"prefill-0": Role.PREFILL, "decode-0": Role.DECODE}
    kinds = {slot.kind for slot in plan.slot_plans(config())}
    by_wish = {ProcessKind.BLOCK_MANAGER, ProcessKind.LEDGER, ProcessKind.MONITOR}
    assert kinds == set(ProcessKind) - {ProcessKind.SUPERVISOR} - by_wish


def test_workers_are_known_by_their_gpus_and_simulated_ones_by_numbers():
    assert plan.worker_meters(config()) == {"prefill-0": (), "decode-0": ("GPU-a", "GPU-b")}
    simulated = config(simulate="8xh100-sxm")
    meters = {slot.name: slot.meters for slot in plan.slot_plans(simulated) if slot.role}
    assert meters == {"prefill-0": ("sim-0",), "decode-0": ("sim-1", "sim-2")}


def test_a_node_with_tiers_has_a_block_manager_that_everybody_knows(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    disk = DiskTierSpec(directories=("/nvme",), max_bytes=1 << 40)
    tiers = TierSettings(host_bytes=1 << 30, disk=disk, log_path="/kv.log")
    shared = msgspec.structs.replace(config().listeners[0], kv_host_share=0.5)
    tiered = msgspec.structs.replace(config(), tiers=tiers, listeners=(shared,))
    (slot,) = [s for s in plan.slot_plans(tiered) if s.kind is ProcessKind.BLOCK_MANAGER]
    assert (slot.name, slot.forkserver) == ("block-manager", "forkserver")
    spec = plan.block_manager_spec(
        tiered, tiers, runtime, Generation(3), arena_bytes=1 << 29, state_dir=tmp_path
    )
    assert (spec.disk, spec.log_path, spec.quotas) == (disk, "/kv.log", {"api": 0.5})
    assert spec.arena_bytes == 1 << 29
    worker = plan.worker_spec(tiered, runtime, tiered.workers[0], Generation(7))
    assert worker.kv.tier_address == spec.tier_address
    assert plan.dispatcher_spec(tiered, runtime, Generation(2)).names_listeners


def test_a_node_without_tiers_tells_nobody_of_any(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    worker = plan.worker_spec(config(), runtime, config().workers[0], Generation(7))
    assert worker.kv.tier_address is None
    assert not plan.dispatcher_spec(config(), runtime, Generation(2)).names_listeners


def test_a_node_that_books_has_a_ledger_that_everybody_knows(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    books = msgspec.structs.replace(config(), accounting=AccountingSettings())
    kinds = {slot.kind: slot.forkserver for slot in plan.slot_plans(books)}
    assert kinds[ProcessKind.LEDGER] == kinds[ProcessKind.MONITOR] == "forkserver"
    ledger = plan.ledger_spec(
        books, runtime, Generation(3), run_id="r1", db_path=tmp_path / "ledger.db"
    )
    worker = plan.worker_spec(books, runtime, books.workers[1], Generation(7))
    dispatcher = plan.dispatcher_spec(books, runtime, Generation(2))
    monitor = plan.monitor_spec(books, runtime, Generation(4), run_began_s=1.0)
    assert {ledger.ledger_address} == {one.ledger_address for one in (worker, dispatcher, monitor)}
    assert worker.meters == monitor.gpu_uuids == ("GPU-a", "GPU-b")
    with pytest.raises(InvariantError, match="books nothing"):
        plan.ledger_spec(config(), runtime, Generation(3), run_id="r1", db_path=tmp_path)


def test_a_worker_is_told_its_place_and_its_engine(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    a_config = config(simulate="2xh100-sxm")
    spec = plan.worker_spec(a_config, runtime, a_config.workers[1], Generation(7))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=WorkerSpec) == spec
    assert (spec.name, spec.generation, spec.role) == ("decode-0", 7, Role.DECODE)
    assert spec.gpu_uuids == ("GPU-a", "GPU-b")
    assert (spec.engine.tp, spec.engine.simulate, spec.engine.speedup) == (2, "2xh100-sxm", 2.0)
    assert spec.kv_events_address.endswith("kv-7.sock")
    runtime.close(keep_logs=False)


def test_a_listeners_keys_reach_its_gateway_and_no_other(tmp_path):
    runtime = RuntimeDirectory(tmp_path / "d")
    keys = tmp_path / "keys"
    keys.write_text("secret-1\n")
    guarded = msgspec.structs.replace(RUST, api_key_file=str(keys))
    a_config = config(listeners=(guarded, PYTHON))
    launches = [
        plan.gateway_launch(a_config, runtime, listener, Generation(1), name=name, http_fd=9)
        for listener in a_config.listeners
        for name in plan.gateway_names(listener)
    ]
    assert [launch.api_keys for launch in launches] == [("secret-1",), (), ()]
    assert [launch.place for launch in launches] == [0, 0, 1]
    runtime.close(keep_logs=False)


def test_what_systemd_tells_the_daemon_is_not_passed_on():
    given = {"LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x", "HOME": "/h", "PATH": "/bin"}
    assert plan.child_environment(given) == {"HOME": "/h", "PATH": "/bin"}
