import random

import pytest

from nodeserve.engine.step_log import StepRecorder
from nodeserve.wire.accounting import Member, WorkShape

WORK = WorkShape(
    token_flops=1, pair_flops=1, kv_bytes=1, weight_bytes=1, flops_per_s=1, bytes_per_s=1
)


@pytest.fixture
def recorder():
    return StepRecorder(WORK, now_s=10.0)


def step(recorder, begin_s, end_s, **changes):
    recorder.began(begin_s)
    recorder.ended(end_s, **changes)


def replayed(recorded):
    """What each step of a log computed, from the log alone: (leg, tokens, context) each."""
    batch = {m.leg_id: (m.tokens, m.context) for m in recorded.batch}
    steps = []
    for run in recorded.runs:
        for leg_id in run.left:
            del batch[leg_id]
        batch.update({m.leg_id: (m.tokens, m.context) for m in run.joined})
        for _ in range(run.num_steps):
            steps.append(
                sorted(
                    [(leg, *at) for leg, at in batch.items()]
                    + [(m.leg_id, m.tokens, m.context) for m in run.once]
                )
            )
            batch = {leg: (tokens, context + tokens) for leg, (tokens, context) in batch.items()}
    return steps


def test_an_engine_that_does_nothing_is_known_to_be_idle_until_now(recorder):
    recorded = recorder.take(11.0)
    assert (recorded.begin_s, recorded.end_s, recorded.batch, recorded.runs) == (10, 11, (), ())
    assert recorder.take(11.0) is None


def test_steps_of_an_unchanged_batch_are_one_run(recorder):
    step(recorder, 10.0, 10.1, joined=[Member("a", 1, 100)])
    step(recorder, 10.1, 10.2)
    step(recorder, 10.2, 10.3)
    (run,) = recorder.take(10.4).runs
    assert (run.num_steps, run.end_s) == (3, 10.3)
    assert run.busy_s == pytest.approx(0.3)
    assert run.joined == (Member("a", 1, 100),)


@pytest.mark.parametrize(
    "change",
    [
        {"joined": [Member("b", 1, 7)]},
        {"left": ["a"]},
        {"once": [Member("c", 512, 0)]},
    ],
)
def test_a_change_begins_a_run(recorder, change):
    step(recorder, 10.0, 10.1, joined=[Member("a", 1, 100)])
    step(recorder, 10.1, 10.2, **change)
    assert [run.num_steps for run in recorder.take(10.3).runs] == [1, 1]


def test_what_was_computed_once_is_in_one_step_only(recorder):
    step(recorder, 10.0, 10.1, joined=[Member("a", 1, 100)], once=[Member("b", 64, 0)])
    step(recorder, 10.1, 10.2)
    assert replayed(recorder.take(10.3)) == [[("a", 1, 100), ("b", 64, 0)], [("a", 1, 101)]]


def test_pauses_are_no_busy_time_and_divide_runs(recorder):
    step(recorder, 10.0, 10.1, joined=[Member("a", 1, 100)])
    step(recorder, 10.105, 10.2)
    step(recorder, 10.5, 10.6)
    runs = recorder.take(11).runs
    assert [(run.num_steps, round(run.busy_s, 3)) for run in runs] == [(2, 0.195), (1, 0.1)]


def test_each_log_says_who_is_in_the_batch_and_how_far(recorder):
    step(recorder, 10.0, 10.1, joined=[Member("a", 1, 100), Member("b", 1, 5)])
    step(recorder, 10.1, 10.2)
    recorder.take(10.2)
    step(recorder, 10.2, 10.3)
    recorded = recorder.take(10.3)
    assert recorded.batch == (Member("a", 1, 102), Member("b", 1, 7))
    assert recorded.runs[0].joined == ()


def test_a_log_ends_where_a_step_that_is_under_way_began(recorder):
    recorder.began(10.5)
    assert recorder.take(12.0).end_s == 10.5
    assert recorder.take(13.0) is None
    recorder.ended(13.5, once=[Member("a", 8192, 0)])
    recorded = recorder.take(14.0)
    assert (recorded.begin_s, recorded.end_s, recorded.runs[0].busy_s) == (10.5, 14.0, 3.0)


def test_a_step_that_begins_as_the_log_is_taken_is_not_before_its_beginning(recorder):
    recorder.take(11.0)
    recorder.began(10.999)
    recorder.ended(11.5)
    assert recorder.take(11.5).runs[0].busy_s == pytest.approx(0.5)


def test_overlapping_steps_take_the_time_between_their_ends(recorder):
    recorder.began(10.0)
    recorder.began(10.1)
    recorder.ended(10.3, joined=[Member("a", 1, 1)])
    assert recorder.take(10.35).end_s == 10.3
    recorder.began(10.35)
    recorder.ended(10.5)
    recorder.ended(10.7)
    recorded = recorder.take(11.0)
    assert sum(run.busy_s for run in recorded.runs) == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(20))
def test_logs_join_without_gaps_and_say_each_step_as_it_was(recorder, seed):
    rng = random.Random(seed)
    now_s, number, contexts, expected, found = 10.0, 0, {}, [], []
    end_s = 10.0
    for _ in range(200):
        begin_s = now_s + rng.choice([0.0, 0.0, 0.5])
        now_s = begin_s + rng.random() / 10
        left = [leg for leg in contexts if rng.random() < 0.05]
        for leg in left:
            del contexts[leg]
        joined = []
        if rng.random() < 0.1:
            number += 1
            joined.append(Member(f"leg-{number}", 1, rng.randrange(1000)))
            contexts[joined[0].leg_id] = joined[0].context
        once = [Member(f"once-{number}", 512, 3)] if rng.random() < 0.1 else []
        step(recorder, begin_s, now_s, joined=joined, left=left, once=once)
        expected.append(
            sorted([(leg, 1, at) for leg, at in contexts.items()] + [tuple_of(m) for m in once])
        )
        contexts = {leg: at + 1 for leg, at in contexts.items()}
        if rng.random() < 0.2 and (recorded := recorder.take(now_s)) is not None:
            assert recorded.begin_s == end_s
            end_s = recorded.end_s
            assert sum(run.busy_s for run in recorded.runs) <= end_s - recorded.begin_s + 1e-9
            found += replayed(recorded)
    if (recorded := recorder.take(now_s + 1)) is not None:
        found += replayed(recorded)
    assert found == expected


def tuple_of(member):
    return (member.leg_id, member.tokens, member.context)
