import pytest

from nodeserve.config.facts import Cpu, Topology
from nodeserve.config.layout import Wish, place_workers, whole_wish, wished_tables
from nodeserve.config.problems import Problems
from nodeserve.config.schema import WorkersTable
from nodeserve.wire.kinds import Role
from tests.config.conftest import cpus, gpus, node_of

P, D, A = Role.PREFILL, Role.DECODE, Role.AGGREGATED


def placed(tables, node, problems=None):
    mine = problems or Problems("config.toml")
    workers = place_workers(tables, node, mine)
    assert problems is not None or mine.errors == []
    return {worker.name: worker.gpu_uuids or worker.cpus for worker in workers}


def errors(tables, node):
    problems = Problems("config.toml")
    place_workers(tables, node, problems)
    return problems.errors


@pytest.mark.parametrize(
    ("wish", "num_gpus", "num_cpus", "expected"),
    [
        (Wish(), 8, 2, [(P, 4, 1), (D, 4, 1)]),
        (Wish(), 3, 2, [(P, 1, 1), (D, 2, 1)]),
        (Wish(), 2, 2, [(P, 1, 1), (D, 1, 1)]),
        (Wish(), 1, 64, [(A, 1, 1)]),
        (Wish(), 0, 2, [(P, 1, 1), (D, 1, 1)]),
        (Wish(), 0, 64, [(P, 1, 1), (D, 1, 1)]),
        (Wish(), 0, 1, [(A, 1, 1)]),
        (Wish(tp_prefill=4, tp_decode=4), 8, 2, [(P, 1, 4), (D, 1, 4)]),
        (Wish(tp_decode=2), 8, 2, [(P, 4, 1), (D, 2, 2)]),
        (Wish(decode=3), 8, 2, [(D, 3, 1)]),
        (Wish(prefill=1, decode=2, aggregated=1), 8, 2, [(P, 1, 1), (D, 2, 1), (A, 1, 1)]),
    ],
)
def test_counts_follow_the_flags_and_else_the_machine(wish, num_gpus, num_cpus, expected):
    tables = wished_tables(wish, num_gpus, num_cpus)
    assert [(table.role, table.count, table.tp) for table in tables] == expected


@pytest.mark.parametrize(
    ("wish", "num_gpus", "expected"),
    [
        (Wish(), 8, [(A, 8, 1)]),
        (Wish(tp_decode=4), 8, [(A, 2, 4)]),
        (Wish(tp_decode=4), 2, [(A, 1, 4)]),
        (Wish(aggregated=2, tp_decode=2), 8, [(A, 2, 2)]),
        (Wish(prefill=1, decode=1), 8, [(P, 1, 1), (D, 1, 1)]),
    ],
)
def test_workers_that_cannot_hand_over_do_both_unless_flags_say_otherwise(wish, num_gpus, expected):
    tables = wished_tables(whole_wish(wish, num_gpus), num_gpus, 2)
    assert [(table.role, table.count, table.tp) for table in tables] == expected


def test_whole_tp_groups_stay_within_a_numa_node():
    tables = [WorkersTable(role=P, count=1, tp=1), WorkersTable(role=D, count=1, tp=4)]
    assert placed(tables, node_of(8, 2)) == {
        "prefill-0": ("GPU-0",),
        "decode-0": ("GPU-4", "GPU-5", "GPU-6", "GPU-7"),
    }


def test_a_group_larger_than_any_numa_node_spans_them():
    tables = [WorkersTable(role=A, tp=8)]
    assert placed(tables, node_of(8, 2))["aggregated-0"] == tuple(f"GPU-{n}" for n in range(8))


def test_named_gpus_are_taken_in_order_by_index_or_uuid():
    tables = [
        WorkersTable(role=D, tp=2, gpus=(3, "GPU-1", 0, 2)),
        WorkersTable(role=P, count=4),
    ]
    assert placed(tables, node_of(8, 2)) == {
        "decode-0": ("GPU-3", "GPU-1"),
        "decode-1": ("GPU-0", "GPU-2"),
        "prefill-0": ("GPU-4",),
        "prefill-1": ("GPU-5",),
        "prefill-2": ("GPU-6",),
        "prefill-3": ("GPU-7",),
    }


def test_workers_of_a_role_are_numbered_over_all_tables():
    tables = [WorkersTable(role=D), WorkersTable(role=P), WorkersTable(role=D)]
    assert list(placed(tables, node_of(3, 2))) == ["decode-0", "prefill-0", "decode-1"]


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ([WorkersTable(role=D, gpus=(8,))], "workers[0].gpus[0] is 8, this node has GPUs 0 to 7"),
        ([WorkersTable(role=D, gpus=("GPU-x",))], "workers[0].gpus[0] is GPU-x"),
        (
            [WorkersTable(role=P, gpus=(1,)), WorkersTable(role=D, gpus=("GPU-1",))],
            "workers[1].gpus[0] is GPU-1, which workers[0].gpus[0] has already",
        ),
        ([WorkersTable(role=D, gpus=(0, 1, 2), tp=2)], "names 3 GPUs, but 1 workers with tp = 2"),
        ([WorkersTable(role=D, gpus=())], "workers[0].gpus names 0 GPUs"),
        ([WorkersTable(role=D, count=9)], "need 9 GPUs, this node has 8 GPUs"),
        (
            [WorkersTable(role=D, gpus=(0, 1)), WorkersTable(role=P, count=7)],
            "need 7 GPUs, this node has 8 GPUs, 2 of them named by other workers",
        ),
        ([WorkersTable(role=D, count=0)], "workers[0].count is 0"),
        ([WorkersTable(role=D, tp=0)], "workers[0].tp is 0"),
        ([WorkersTable(role=P, count=2)], "workers are all prefill"),
        ([WorkersTable()], "workers[0].role is missing"),
        ([], "workers are none"),
    ],
)
def test_what_the_gpus_cannot_hold_is_refused(tables, what):
    [error] = errors(tables, node_of(8, 2))
    assert what in error


def test_gpus_are_refused_where_there_are_none():
    found = errors([WorkersTable(role=D, gpus=(0, 1), tp=2)], node_of(0, 2))
    assert [error.split(" ")[1] for error in found] == ["workers[0].gpus"]


def test_a_cpu_worker_may_have_several_ranks():
    assert errors([WorkersTable(role=D, tp=2)], node_of(0, 2)) == []


def test_decode_alone_is_a_node():
    assert placed([WorkersTable(role=D)], node_of(0, 1)) == {"decode-0": (0,)}


def test_cpus_are_split_among_workers_and_some_stay_free():
    tables = [WorkersTable(role=P), WorkersTable(role=D, count=2)]
    assert placed(tables, node_of(0, 16)) == {
        "prefill-0": (0, 1, 2, 3, 4),
        "decode-0": (5, 6, 7, 8, 9),
        "decode-1": (10, 11, 12, 13),
    }


def test_sibling_threads_and_numa_nodes_stay_together():
    node = Topology(cpus=tuple(Cpu(index=n, core=n % 4, numa_node=(n % 4) // 2) for n in range(8)))
    tables = [WorkersTable(role=P, cpus=(0, 4)), WorkersTable(role=D)]
    assert placed(tables, node) == {"prefill-0": (0, 4), "decode-0": (1, 5, 2, 6, 3)}


def test_more_workers_than_cpus_share_with_a_warning():
    problems = Problems("config.toml")
    workers = placed([WorkersTable(role=D, count=3)], node_of(0, 2), problems)
    assert workers == {"decode-0": (0,), "decode-1": (1,), "decode-2": (0,)}
    assert problems.errors == []
    assert "3 workers share 2 CPUs" in problems.warnings[0]


def test_cpus_that_are_not_ours_are_refused():
    [error] = errors([WorkersTable(role=D, cpus=(0, 9))], node_of(0, 4))
    assert "workers[0].cpus[1] is 9, this process may run on CPUs 0-3" in error


def test_fewer_named_cpus_than_workers_are_refused():
    [error] = errors([WorkersTable(role=D, count=2, cpus=(0,))], node_of(0, 4))
    assert "names 1 CPUs for 2 workers" in error


def test_cpus_named_twice_are_shared_with_a_warning():
    problems = Problems("config.toml")
    tables = [WorkersTable(role=P, cpus=(0,)), WorkersTable(role=D, cpus=(0,))]
    assert placed(tables, node_of(0, 2), problems) == {"prefill-0": (0,), "decode-0": (0,)}
    assert (problems.errors, len(problems.warnings)) == ([], 1)


def test_workers_on_gpus_get_cpus_only_where_they_are_named():
    node = Topology(gpus=gpus(2), cpus=cpus(4))
    tables = [WorkersTable(role=P, cpus=(0, 1)), WorkersTable(role=D)]
    workers = place_workers(tables, node, Problems("config.toml"))
    assert [(worker.gpu_uuids, worker.cpus) for worker in workers] == [
        (("GPU-0",), (0, 1)),
        (("GPU-1",), ()),
    ]
