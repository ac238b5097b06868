from types import SimpleNamespace

import pytest

from nodeserve.clock import ManualClock
from nodeserve.engine.step_log import StepRecorder
from nodeserve.engine.vllm.step_watch import StepWatch
from nodeserve.perf_model.work_shape import TYPICAL
from nodeserve.wire.accounting import Member


def plan(counts, contexts, new=()):
    """A SchedulerOutput with the fields that are looked at."""
    cached = [leg_id for leg_id in counts if leg_id not in new]
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=leg_id, num_computed_tokens=contexts[leg_id]) for leg_id in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached, num_computed_tokens=[contexts[leg_id] for leg_id in cached]
        ),
    )


@pytest.fixture
def clock():
    return ManualClock(10.0)


@pytest.fixture
def recorder():
    return StepRecorder(TYPICAL, now_s=10.0)


@pytest.fixture
def watch(recorder, clock):
    return StepWatch(recorder, clock)


@pytest.fixture
def step(watch, clock):
    def one(planned):
        watch.planned(planned)
        clock.advance(0.1)
        watch.ended(planned)

    return one


def test_prompts_are_computed_once_and_answers_in_the_batch(step, recorder):
    step(plan({"a": 512, "b": 100}, {"a": 0, "b": 16}, new=("a", "b")))
    step(plan({"a": 200, "b": 1}, {"a": 512, "b": 116}))
    step(plan({"a": 1, "b": 1}, {"a": 712, "b": 117}))
    step(plan({"a": 1, "b": 1}, {"a": 713, "b": 118}))
    step(plan({"b": 1}, {"b": 119}))
    runs = recorder.take(11.0).runs
    assert [(set(r.joined), r.left, set(r.once), r.num_steps) for r in runs] == [
        (set(), (), {Member("a", 512, 0), Member("b", 100, 16)}, 1),
        ({Member("b", 1, 116)}, (), {Member("a", 200, 512)}, 1),
        ({Member("a", 1, 712)}, (), set(), 2),
        (set(), ("a",), set(), 1),
    ]


def test_a_request_that_is_passed_over_comes_back_with_its_context(step, recorder):
    step(plan({"a": 1, "b": 1}, {"a": 10, "b": 20}))
    step(plan({"b": 1}, {"b": 21}))
    step(plan({"a": 1, "b": 1}, {"a": 11, "b": 22}))
    assert recorder.take(11.0).runs[2].joined == (Member("a", 1, 11),)


def test_empty_steps_are_none(step, recorder):
    step(plan({}, {}))
    assert recorder.take(10.1).runs == ()


def test_overlapping_steps_are_timed_by_their_ends(watch, recorder, clock):
    first, second = (plan({"a": 1}, {"a": at}) for at in (5, 6))
    watch.planned(first)
    watch.planned(second)
    clock.advance(0.3)
    watch.ended(first)
    clock.advance(0.2)
    watch.ended(second)
    (run,) = recorder.take(11.0).runs
    assert (run.num_steps, run.busy_s) == (2, pytest.approx(0.5))


def test_the_scheduler_works_as_before_and_is_looked_at(watch, recorder, clock):
    planned = plan({"a": 7}, {"a": 0}, new=("a",))

    class Scheduler:
        def schedule(self, throttle=False):
            return planned

        def update_from_output(self, output, model_output):
            return (output, model_output)

    scheduler = Scheduler()
    watch.install(scheduler)
    assert scheduler.schedule(True) is planned
    clock.advance(0.5)
    assert scheduler.update_from_output(planned, "tokens") == (planned, "tokens")
    assert recorder.take(11.0).runs[0].once == (Member("a", 7, 0),)
