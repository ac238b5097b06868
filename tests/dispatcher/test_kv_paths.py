"""Which paths are measured, when, and what becomes of bad ones."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from nodeserve.dispatcher.kv_paths import KvPaths
from nodeserve.dispatcher.worker_link import Worker
from nodeserve.router.messages import LegKind, RoleChanged
from nodeserve.wire import control
from nodeserve.wire.engine_core import UTILITY
from nodeserve.wire.kinds import HANDOFF, PROBE, TIER_PROBE, Role
from tests.dispatcher.fakes import FIELDS, FakeEngine, encode, running_node

POOLS = [{"handle": {"transport": "cuda_ipc"}}]
FIGURES = {
    "transport": "cuda_ipc",
    "latency_us": 12.0,
    "gbps_64kb": 100.0,
    "gbps_256kb": 200.0,
    "gbps_64mb": 300.0,
}


def worker(generation: int, role: Role, *features: str) -> Worker:
    name = f"{role.value}-{generation}"
    ready = control.WorkerReady(
        name=name,
        generation=generation,
        fields=FIELDS,
        ready=encode({}),
        block_size=16,
        num_gpu_blocks=8,
        kv_block_bytes=1,
        max_model_len=100,
        features=features or (HANDOFF, PROBE),
    )
    return Worker(control.AttachWorker(name=name, generation=generation, role=role, ready=ready))


class Desk:
    """Remembers what is asked and told."""

    def __init__(self, *workers: Worker) -> None:
        self.workers: Any = SimpleNamespace(attached={w.generation: w for w in workers})
        self.asked: list[Any] = []
        self.told: list[Any] = []

    def ask_worker(self, worker, method, args, then):
        self.asked.append((worker.name, method, args, then))

    def tell(self, event):
        self.told.append(event)

    def answer(self, result, failure=None):
        """Answer the oldest question; returns whom it was put to, and what it was."""
        name, method, args, then = self.asked.pop(0)
        then(failure, result)
        return name, method, args


def paths_of(*workers, min_gbps=None):
    desk = Desk(*workers)
    paths = KvPaths(desk, min_gbps)
    paths.look()
    return desk, paths


def pair():
    return worker(1, Role.PREFILL), worker(2, Role.DECODE)


def test_the_destination_measures_what_the_source_describes():
    desk, paths = paths_of(*pair())
    assert desk.answer(POOLS) == ("prefill-1", "nodeserve_pools", [])
    assert desk.answer(FIGURES) == ("decode-2", "nodeserve_probe", [POOLS])
    (path,) = paths.found()
    assert (path.source, path.destination, path.verdict) == ("prefill-1", "decode-2", "good")
    assert (path.gbps_64mb, path.floor_gbps, path.error) == (300.0, 20.0, None)
    paths.look()
    assert desk.asked == []


def test_every_pair_is_measured_once_one_at_a_time():
    prefills = [worker(g, Role.PREFILL) for g in (1, 2)]
    decodes = [worker(g, Role.DECODE) for g in (3, 4)]
    desk, paths = paths_of(*prefills, *decodes, worker(5, Role.AGGREGATED))
    seen = []
    while desk.asked:
        assert len(desk.asked) == 1
        paths.look()
        name, method, _ = desk.answer(POOLS if desk.asked[0][1] == "nodeserve_pools" else FIGURES)
        seen.append((name, method.removeprefix("nodeserve_")))
    first, second = ("decode-3", "probe"), ("decode-4", "probe")
    assert seen == [("prefill-1", "pools"), first, second, ("prefill-2", "pools"), first, second]
    assert len(paths.found()) == 4


def running(worker):
    worker.gauges.running = 1


def queued(worker):
    worker.gauges.waiting = 1


def starting(worker):
    worker.unstarted[LegKind.WHOLE] = 1


def streaming(worker):
    worker.streams["leg"] = None


@pytest.mark.parametrize("busy", [running, queued, starting, streaming])
@pytest.mark.parametrize("index", [0, 1])
def test_who_has_work_is_not_measured_until_it_is_idle(busy, index):
    workers = pair()
    busy(workers[index])
    desk, paths = paths_of(*workers)
    assert desk.asked == []
    gauges = workers[index].gauges
    gauges.running = gauges.waiting = 0
    workers[index].unstarted[LegKind.WHOLE] = 0
    workers[index].streams.clear()
    paths.look()
    assert desk.asked


def test_engines_without_the_feature_are_left_alone():
    desk, _ = paths_of(worker(1, Role.PREFILL, HANDOFF), worker(2, Role.DECODE))
    assert desk.asked == []


def measured(figures, min_gbps=None):
    workers = pair()
    desk, paths = paths_of(*workers, min_gbps=min_gbps)
    desk.answer(POOLS)
    desk.answer(figures)
    (path,) = paths.found()
    return workers[0], desk, path


@pytest.mark.parametrize(
    ("transport", "gbps", "verdict"),
    [
        ("cuda_ipc", 19.9, "slow"),
        ("cuda_ipc", 20.0, "good"),
        ("cuda_vmm", 1.0, "slow"),
        ("shared_memory", 0.1, "slow"),
        ("shared_memory", 1.0, "good"),
        ("simulated", 0.001, "good"),
    ],
)
def test_a_path_slower_than_usual_is_warned_of_and_used(caplog, transport, gbps, verdict):
    caplog.set_level(logging.INFO)
    source, desk, path = measured(FIGURES | {"transport": transport, "gbps_64mb": gbps})
    assert path.verdict == verdict
    assert (source.role, desk.told) == (Role.PREFILL, [])
    assert "kv_path_probed from=prefill-1 to=decode-2 transport=" + transport in caplog.text
    warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert bool(warned) == (verdict == "slow")


def test_a_path_below_the_operators_floor_is_not_used(caplog):
    source, desk, path = measured(FIGURES, min_gbps=301.0)
    assert (path.verdict, path.floor_gbps) == ("refused", 301.0)
    assert desk.told == [RoleChanged(source.generation, Role.AGGREGATED)]
    assert source.role is Role.AGGREGATED
    assert (
        "kv_path_refused from=prefill-1 to=decode-2 gbps_64mb=300.0 floor_gbps=301" in caplog.text
    )


def test_a_floor_that_is_set_later_counts_for_what_is_measured_from_then_on():
    desk, paths = paths_of(*pair())
    desk.answer(POOLS)
    paths.min_gbps = 301.0
    desk.answer(FIGURES)
    assert paths.found()[0].verdict == "refused"


def test_a_path_that_cannot_be_read_is_not_used(caplog):
    source, _, path = measured({"error": "GPU-a has no direct path to GPU-b"})
    assert (path.verdict, path.error) == ("refused", "GPU-a has no direct path to GPU-b")
    assert source.role is Role.AGGREGATED
    assert "kv_path_refused" in caplog.text


@pytest.mark.parametrize("result", [None, {}, [], {"transport": 1}, FIGURES | {"gbps_64mb": "x"}])
def test_an_answer_that_makes_no_sense_is_no_refusal(result):
    source, _, path = measured(result)
    assert (path.verdict, source.role) == ("unknown", Role.PREFILL)


def test_who_does_not_answer_is_unknown_and_the_next_path_is_measured():
    desk, paths = paths_of(*pair(), worker(3, Role.DECODE))
    desk.answer(POOLS)
    desk.answer(None, failure="nodeserve_probe: no answer within 5 s")
    assert desk.answer(FIGURES)[0] == "decode-3"
    assert [path.verdict for path in paths.found()] == ["unknown", "good"]


@pytest.mark.parametrize("gone", [1, 2])
def test_a_worker_that_goes_takes_its_paths_along_and_its_successor_is_measured(gone):
    desk, paths = paths_of(*pair())
    desk.answer(POOLS)
    role = desk.workers.attached.pop(gone).role
    paths.forget(gone)
    desk.answer(None, failure="the worker is gone")
    assert paths.found() == ()
    desk.workers.attached[7] = worker(7, role)
    paths.look()
    assert desk.asked


def tiered(generation: int, role: Role) -> Worker:
    return worker(generation, role, HANDOFF, PROBE, TIER_PROBE)


def test_what_comes_from_the_host_tier_is_measured_last_for_every_role():
    workers = tiered(1, Role.PREFILL), tiered(2, Role.DECODE), tiered(3, Role.AGGREGATED)
    desk, paths = paths_of(*workers)
    desk.answer(POOLS)
    desk.answer(FIGURES)
    tier = FIGURES | {"transport": "pinned_host"}
    asked = [desk.answer(tier) for _ in workers]
    assert [name for name, *_ in asked] == ["prefill-1", "decode-2", "aggregated-3"]
    assert {(method, *args) for _, method, args in asked} == {("nodeserve_probe_tier",)}
    (*hosts, handoff) = paths.found()
    assert [(path.source, path.destination) for path in hosts] == [
        ("host", name) for name, *_ in asked
    ]
    assert {(path.verdict, path.floor_gbps) for path in hosts} == {("good", 8.0)}
    assert handoff.source == "prefill-1"
    paths.look()
    assert desk.asked == []


@pytest.mark.parametrize("busy", [running, queued, starting, streaming])
def test_a_worker_with_work_does_not_measure_the_host_tier(busy):
    one = tiered(3, Role.AGGREGATED)
    busy(one)
    desk, _ = paths_of(one)
    assert desk.asked == []


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (FIGURES | {"transport": "pageable_host", "gbps_64mb": 5.0}, "slow"),
        (FIGURES | {"transport": "host", "gbps_64mb": 5.0}, "good"),
        ({"error": "the block manager has not answered within 1 s"}, "unknown"),
        (None, "unknown"),
    ],
)
def test_a_slow_host_tier_is_warned_of_and_used(caplog, answer, verdict):
    one = tiered(3, Role.AGGREGATED)
    desk, paths = paths_of(one, min_gbps=301.0)  # which is for handoffs
    desk.answer(answer)
    (path,) = paths.found()
    assert (path.verdict, one.role, desk.told) == (verdict, Role.AGGREGATED, [])
    warned = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert bool(warned) == (verdict != "good")


def test_a_worker_that_goes_while_it_measures_the_host_tier_holds_nobody_up():
    desk, paths = paths_of(tiered(3, Role.AGGREGATED))
    desk.workers.attached.clear()
    paths.forget(3)
    desk.answer(None, failure="the worker is gone")
    assert paths.found() == ()
    desk.workers.attached[4] = tiered(4, Role.AGGREGATED)
    paths.look()
    assert desk.answer(FIGURES)[0] == "aggregated-4"


def test_a_new_role_is_measured_anew():
    desk, paths = paths_of(*pair())
    desk.answer(POOLS)
    desk.answer(FIGURES)
    paths.forget(2)
    paths.look()
    assert desk.answer(FIGURES)[:2] == ("decode-2", "nodeserve_probe")


async def test_a_dispatcher_measures_its_workers_and_says_so_in_its_status(tmp_path):
    async with running_node(tmp_path) as node:
        prefill, decode = FakeEngine(node, 10, Role.PREFILL), FakeEngine(node, 11, Role.DECODE)
        for engine in (prefill, decode):
            engine.features = (HANDOFF, PROBE)
            await engine.attach()
        _, number, method, args = await prefill.next(UTILITY)
        assert (method, args) == ("nodeserve_pools", [])
        prefill.answer(number, POOLS)
        _, number, method, args = await decode.next(UTILITY)
        assert (method, args) == ("nodeserve_probe", [POOLS])
        decode.answer(number, FIGURES)
        status = await node.status_with(lambda status: bool(status.kv_paths))
        assert status.kv_paths[0].gbps_64mb == 300.0
