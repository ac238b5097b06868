import msgspec
import pytest

from nodeserve.config.diff import Change, compare
from nodeserve.config.node import (
    AccountingSettings,
    GatewayKind,
    Listener,
    LivenessSettings,
    NodeConfig,
    RouterSettings,
    TierSettings,
    Worker,
)
from nodeserve.errors import ConfigError
from nodeserve.wire.kinds import Role
from nodeserve.wire.spawn import KvSpec, TenantSpec

API = Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST)
BATCH = Listener(name="batch", socket="/run/b.sock", gateway=GatewayKind.PYTHON)


def worker(role, number, **more):
    return Worker(name=f"{role}-{number}", role=role, **more)


def workers(num_prefill, num_decode):
    prefill = [worker(Role.PREFILL, number) for number in range(num_prefill)]
    return (*prefill, *(worker(Role.DECODE, number) for number in range(num_decode)))


OLD = NodeConfig(
    model="/m",
    served_model_names=("m",),
    runtime_dir="/run/d",
    listeners=(API,),
    workers=workers(2, 2),
    simulate="4xh100-sxm",
)


def changed(**fields):
    return msgspec.structs.replace(OLD, **fields)


def test_nothing_changes_between_equal_configurations():
    effective, change = compare(OLD, OLD)
    assert effective == OLD
    assert change == Change()
    assert change.lines() == []


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"model": "/n"}, "model is /m and would be /n: restart the daemon for it"),
        ({"served_model_names": ("n",)}, "served_model_name is m and would be n"),
        ({"runtime_dir": "/x"}, "runtime_dir is /run/d and would be /x"),
        ({"simulate": None}, "simulate is 4xh100-sxm and would be none"),
        (
            {"listeners": (msgspec.structs.replace(API, socket="/run/c.sock"),)},
            "listener api: address is /run/a.sock and would be /run/c.sock",
        ),
        ({"listeners": (msgspec.structs.replace(API, mode=0o600),)}, "is 0660 and would be 0600"),
        ({"listeners": (msgspec.structs.replace(API, group="g"),)}, "is none and would be g"),
    ],
)
def test_what_every_process_has_in_it_cannot_change(fields, line):
    with pytest.raises(ConfigError) as refused:
        compare(OLD, changed(**fields))
    assert line in str(refused.value)


def test_everything_that_cannot_change_is_said_at_once():
    with pytest.raises(ConfigError) as refused:
        compare(OLD, changed(model="/n", runtime_dir="/x", drain_deadline_s=1.0))
    assert len(str(refused.value).splitlines()) == 2


def test_what_is_asked_for_when_it_is_needed_restarts_nothing():
    new = changed(
        router=RouterSettings(max_queued_requests=5),
        drain_deadline_s=5.0,
        liveness=LivenessSettings(step_s=20.0),
        warnings=("look",),
    )
    _, change = compare(OLD, new)
    assert change == Change(
        live=(
            "router.max_queued_requests 10000 -> 5",
            "drain.deadline_s 60.0 -> 5.0",
            "liveness.step_s 10.0 -> 20.0",
        )
    )


def test_workers_come_and_go_by_their_number():
    assert compare(OLD, changed(workers=workers(2, 3)))[1] == Change(added=("decode-2",))
    assert compare(OLD, changed(workers=workers(1, 2)))[1] == Change(removed=("prefill-1",))


def test_one_more_of_a_role_and_one_less_of_another_is_a_change_of_role():
    effective, change = compare(OLD, changed(workers=workers(1, 3)))
    assert change == Change(roles={"prefill-1": Role.DECODE})
    assert [w.name for w in effective.workers] == ["prefill-0", "decode-0", "decode-1", "prefill-1"]
    again, change = compare(effective, changed(workers=workers(1, 3)))
    assert (again, change) == (effective, Change())
    back, change = compare(effective, OLD)
    assert change == Change(roles={"prefill-1": Role.PREFILL})
    assert back == OLD


def placed(role, number, gpu, args):
    return worker(role, number, gpu_uuids=(gpu,), args=args)


def test_workers_are_known_by_their_place_also_where_all_names_move():
    """One prefill worker less: the decode workers are counted from another GPU on."""
    prefill, decode = {"max_num_batched_tokens": 16_384}, {}
    old = changed(
        workers=(
            placed(Role.PREFILL, 0, "G0", prefill),
            placed(Role.PREFILL, 1, "G1", prefill),
            placed(Role.DECODE, 0, "G2", decode),
            placed(Role.DECODE, 1, "G3", decode),
        )
    )
    new = changed(
        workers=(
            placed(Role.PREFILL, 0, "G0", prefill),
            *(placed(Role.DECODE, number, f"G{number + 1}", decode) for number in range(3)),
        )
    )
    effective, change = compare(old, new)
    assert change == Change(roles={"prefill-1": Role.DECODE})
    assert [(w.name, w.gpu_uuids[0]) for w in effective.workers] == [
        ("prefill-0", "G0"),
        ("prefill-1", "G1"),
        ("decode-0", "G2"),
        ("decode-1", "G3"),
    ]


def test_who_comes_gets_a_name_that_nobody_has():
    old = changed(workers=(placed(Role.DECODE, 0, "G1", {}), placed(Role.DECODE, 1, "G2", {})))
    new = changed(workers=tuple(placed(Role.DECODE, n, f"G{n}", {}) for n in range(3)))
    effective, change = compare(old, new)
    assert change == Change(added=("decode-2",))
    assert [(w.name, w.gpu_uuids[0]) for w in effective.workers] == [
        ("decode-2", "G0"),
        ("decode-0", "G1"),
        ("decode-1", "G2"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"kv": KvSpec(lease_ttl_s=5.0)},
        {"speedup": 2.0},
    ],
)
def test_what_an_engine_starts_with_restarts_the_workers(fields):
    assert compare(OLD, changed(**fields))[1] == Change(
        restarted=tuple(w.name for w in OLD.workers)
    )


def test_engine_arguments_restart_the_gateways_too_that_have_their_limits_from_them():
    new = changed(workers=tuple(msgspec.structs.replace(w, args={"x": 1}) for w in OLD.workers))
    assert compare(OLD, new)[1] == Change(
        restarted=tuple(w.name for w in OLD.workers), listeners_restarted=("api",)
    )


def test_one_workers_argument_restarts_that_worker():
    other = msgspec.structs.replace(OLD.workers[1], args={"max_num_seqs": 4})
    new = changed(workers=(OLD.workers[0], other, *OLD.workers[2:]))
    assert compare(OLD, new)[1] == Change(restarted=("prefill-1",))


def test_who_comes_to_the_place_of_one_that_leaves_waits_for_it():
    old = changed(workers=(worker(Role.PREFILL, 0, gpu_uuids=("G0",), args={"a": 1}),))
    new = changed(workers=(worker(Role.DECODE, 0, gpu_uuids=("G0",), args={"a": 2}),))
    assert compare(old, new)[1] == Change(
        added=("decode-0",), removed=("prefill-0",), additions_wait=True
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"gateway": GatewayKind.PYTHON},
        {"api_key_file": "/keys"},
        {"args": {"x": 1}},
        {"tenant": TenantSpec(weight=2.0)},
    ],
)
def test_what_a_gateway_starts_with_restarts_it_behind_its_socket(fields):
    new = changed(listeners=(msgspec.structs.replace(API, **fields),))
    assert compare(OLD, new)[1] == Change(listeners_restarted=("api",))


def test_listeners_come_and_go_by_their_name():
    both = changed(listeners=(API, BATCH))
    assert compare(OLD, both)[1] == Change(listeners_added=("batch",))
    assert compare(both, OLD)[1] == Change(listeners_removed=("batch",))


def test_every_setting_has_an_effect_or_is_refused():
    """A new field of the configuration must be put into one of the groups."""
    grouped = {"model", "served_model_names", "runtime_dir", "simulate", "kv", "speedup", "router"}
    grouped |= {"drain_deadline_s", "liveness", "listeners", "workers", "warnings", "tiers"}
    grouped |= {"accounting"}
    assert set(NodeConfig.__struct_fields__) == grouped
    of_listeners = {"name", "socket", "host", "port", "mode", "group"}
    of_listeners |= {"gateway", "gateways", "api_key_file", "args", "tenant", "kv_host_share"}
    assert set(Listener.__struct_fields__) == of_listeners


def test_the_steps_are_said_in_their_order():
    change = Change(
        live=("drain.deadline_s 60.0 -> 5.0",),
        added=("decode-2",),
        removed=("prefill-1",),
        restarted=("decode-0",),
        roles={"decode-1": Role.PREFILL},
        listeners_added=("batch",),
        listeners_removed=("old",),
        listeners_restarted=("api",),
    )
    assert change.lines() == [
        "at once: drain.deadline_s 60.0 -> 5.0",
        "worker decode-1: used for prefill from now on",
        "listener batch: opened, with its own gateway",
        "worker prefill-1: drained, then ended",
        "worker decode-2: started",
        "worker decode-0: drained and restarted, one by one",
        "listener api: its gateway restarts, its socket stays open",
        "listener old: closed",
    ]


TIERED = changed(tiers=TierSettings(host_bytes=1 << 30))


@pytest.mark.parametrize(
    ("old", "new", "manager", "restarted"),
    [
        (OLD, TIERED, "started", 4),
        (TIERED, OLD, "ended", 4),
        (TIERED, changed(tiers=TierSettings(host_bytes=2 << 30)), "restarted", 0),
        (TIERED, changed(tiers=TierSettings(host_bytes=1 << 30, log_path="/l")), "restarted", 0),
        (
            TIERED,
            msgspec.structs.replace(
                TIERED, listeners=(msgspec.structs.replace(API, kv_host_share=0.5),)
            ),
            "restarted",
            0,
        ),
        (TIERED, TIERED, None, 0),
    ],
)
def test_tiers_restart_the_block_manager_and_workers_only_where_they_come_or_go(
    old, new, manager, restarted
):
    _, change = compare(old, new)
    assert (change.block_manager, len(change.restarted)) == (manager, restarted)
    assert not change.listeners_restarted
    assert (f"block manager: {manager}" in change.lines()) == (manager is not None)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, AccountingSettings(), "accounting.enabled is False and would be True"),
        (
            AccountingSettings(zone="DEU"),
            AccountingSettings(zone="FRA"),
            "accounting.zone is DEU and would be FRA",
        ),
    ],
)
def test_how_a_node_books_does_not_change_while_it_serves(before, after, said):
    with pytest.raises(ConfigError, match=said):
        compare(changed(accounting=before), changed(accounting=after))
