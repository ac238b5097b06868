import pytest

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.kv_blocks import Stored
from nodeserve.errors import InvariantError
from nodeserve.wire.engine_core import RESUMED


def prompt(length, start=0):
    return list(range(start, start + length))


def events(row):
    return [event["type"] for event in row[wire.EVENTS]]


def test_request_gets_one_token_a_step_and_ends_at_max_tokens(bench):
    bench.add("a", prompt(5), max_tokens=3)
    assert [bench.step() for _ in range(4)] == [["a"], ["a"], ["a"], []]
    assert len(bench.tokens["a"]) == 3
    assert bench.last_rows["a"][wire.FINISH_REASON] == wire.FINISH_LENGTH
    assert bench.idle()


def test_first_output_tells_how_the_prefill_went_and_later_ones_do_not(bench):
    bench.run("a", prompt(5), max_tokens=2)
    first = bench.first_rows["a"]
    assert events(first) == [wire.EVENT_QUEUED, wire.EVENT_SCHEDULED]
    assert first[wire.PREFILL_STATS] == {
        "num_prompt_tokens": 5,
        "num_computed_tokens": 5,
        "num_cached_tokens": 0,
        "num_local_cached_tokens": 0,
        "num_external_cached_tokens": 0,
        "num_cache_creation_tokens": 4,
    }
    last = bench.last_rows["a"]
    assert (last[wire.EVENTS], last[wire.PREFILL_STATS]) == (None, None)


def test_tokens_do_not_depend_on_the_batch(make_bench):
    alone = make_bench().run("a", prompt(9), max_tokens=150)
    bench = make_bench()
    for index in range(5):
        bench.add(f"other-{index}", prompt(7, start=50 * index), max_tokens=20 + index)
    assert bench.run("a", prompt(9), max_tokens=150) == alone


def test_long_prompt_is_prefilled_in_chunks_of_the_budget(bench):
    bench.add("a", prompt(70), max_tokens=1)
    work = []
    for _ in range(3):
        assert bench.scheduler.plan(bench.now_s)
        work.append(bench.scheduler.step_work())
        bench.scheduler.finish_step(bench.now_s)
    assert [step.prefill_tokens for step in work] == [32, 32, 6]
    assert [step.prefill_pairs for step in work] == [32 * 16, 32 * (32 + 16), 6 * (64 + 3)]


def test_decoding_requests_come_out_of_the_budget_first(bench):
    bench.add("a", prompt(5), max_tokens=50)
    bench.step()
    bench.add("b", prompt(70, start=100), max_tokens=1)
    assert bench.scheduler.plan(bench.now_s)
    work = bench.scheduler.step_work()
    assert (work.decoding, work.context_tokens, work.prefill_tokens) == (1, 6, 31)


def test_at_most_max_num_seqs_run(make_bench):
    bench = make_bench(max_num_seqs=2)
    for name in "abc":
        bench.add(name, prompt(4, start=ord(name)), max_tokens=3)
    assert sorted(bench.step()) == ["a", "b"]
    stats = bench.scheduler.take_stats()
    assert (stats["num_running_reqs"], stats["num_waiting_reqs"]) == (2, 1)
    bench.step(2)
    assert bench.step() == ["c"]


def test_lower_priority_number_goes_first_and_older_among_equals(make_bench):
    bench = make_bench(max_num_seqs=1)
    bench.add("late", prompt(4), max_tokens=1, priority=5)
    bench.add("first", prompt(4, start=10), max_tokens=1, priority=-1)
    bench.add("second", prompt(4, start=20), max_tokens=1, priority=-1)
    assert [bench.step() for _ in range(3)] == [["first"], ["second"], ["late"]]


def test_abort_frees_what_waits_and_what_runs_without_an_output(make_bench):
    bench = make_bench(max_num_seqs=2)
    for name in "abc":
        bench.add(name, prompt(40, start=ord(name)), max_tokens=50)
    bench.step(3)
    bench.scheduler.abort(["a", "b", "c", "never-seen"])
    assert bench.step() == []
    assert bench.idle()


def test_abort_while_a_step_runs_takes_the_request_out_of_it(bench):
    bench.add("a", prompt(4), max_tokens=9)
    bench.add("b", prompt(4, start=9), max_tokens=9)
    bench.step(2)
    assert bench.scheduler.plan(bench.now_s)
    bench.scheduler.abort(["a"])
    assert [row[0] for row in bench.scheduler.finish_step(bench.now_s)] == ["b"]


def test_same_id_twice_is_refused_and_changes_nothing(bench):
    bench.add("a", prompt(4), max_tokens=2)
    with pytest.raises(InvariantError, match="request a was added while it runs"):
        bench.add("a", prompt(4), max_tokens=2)
    assert bench.step() == ["a"]


def test_second_request_with_a_prefix_computes_only_the_rest(bench):
    bench.run("a", prompt(16), max_tokens=1)
    bench.run("b", [*prompt(16), 77, 78, 79], max_tokens=1)
    assert bench.stats("b")["num_local_cached_tokens"] == 16
    assert bench.stats("b")["num_computed_tokens"] == 3
    looked_up = bench.scheduler.take_stats()["prefix_cache_stats"]
    assert (looked_up["requests"], looked_up["queries"], looked_up["hits"]) == (2, 35, 16)


def test_last_prompt_token_is_always_computed(bench):
    first = bench.run("a", prompt(16), max_tokens=3)
    assert bench.run("b", prompt(16), max_tokens=3) == first
    assert bench.stats("b")["num_local_cached_tokens"] == 12


def test_output_blocks_are_cached_too(bench):
    output = bench.run("a", prompt(6), max_tokens=12)
    bench.run("b", prompt(6) + output, max_tokens=1)
    assert bench.stats("b")["num_local_cached_tokens"] == 16


def test_salted_prompts_share_nothing(bench):
    bench.run("a", prompt(16), max_tokens=1, salt="tenant-1")
    bench.run("b", prompt(16), max_tokens=1)
    bench.run("c", prompt(16), max_tokens=1, salt="tenant-1")
    assert bench.stats("b")["num_local_cached_tokens"] == 0
    assert bench.stats("c")["num_local_cached_tokens"] == 12


@pytest.mark.parametrize("sampling", [{"skip_reading_prefix_cache": True}, {"prompt_logprobs": 0}])
def test_request_that_may_not_read_the_cache_computes_all(bench, sampling):
    bench.run("a", prompt(16), max_tokens=1)
    bench.run("b", prompt(16), max_tokens=1, **sampling)
    assert bench.stats("b")["num_computed_tokens"] == 16


def test_newly_cached_blocks_are_reported_once_in_a_chain(bench):
    bench.run("a", prompt(10), max_tokens=4)
    first, second = bench.scheduler.take_kv_events()
    assert isinstance(first, Stored)
    assert (first.parent, first.tokens) == (None, prompt(8))
    assert isinstance(second, Stored)
    assert second.parent == first.hashes[-1]
    assert second.tokens == [8, 9, *bench.tokens["a"][:2]]
    bench.run("b", prompt(10), max_tokens=1)
    assert bench.scheduler.take_kv_events() == []


def test_newest_request_starts_over_when_blocks_run_out_and_says_the_same(make_bench):
    expected = make_bench().run("b", prompt(8, start=50), max_tokens=30)
    bench = make_bench(num_blocks=10)
    bench.add("a", prompt(8), max_tokens=30)
    bench.add("b", prompt(8, start=50), max_tokens=30)
    seen = []
    while not (bench.has_ended("a") and bench.has_ended("b")):
        bench.step()
        row = bench.last_rows.get("b")
        if row is not None and row[wire.EVENTS]:
            seen += events(row)
            bench.last_rows["b"][wire.EVENTS] = None
    assert bench.tokens["b"] == expected
    assert wire.EVENT_PREEMPTED in seen
    assert bench.idle()


def test_lowest_rank_starts_over_not_the_newest(make_bench):
    bench = make_bench(num_blocks=10)
    bench.add("a", prompt(8), max_tokens=30, priority=1)
    bench.add("b", prompt(8, start=50), max_tokens=30)
    while not bench.has_ended("b"):
        bench.step()
    assert not bench.has_ended("a")
    assert len(bench.tokens["b"]) == 30


def test_stop_token_ends_a_request_after_min_tokens(make_bench):
    tokens = make_bench().run("a", prompt(4), max_tokens=200)
    bench = make_bench()
    stop = tokens[70]
    assert (
        bench.run("a", prompt(4), max_tokens=200, stop_token_ids=[stop])
        == (tokens[: tokens.index(stop) + 1])
    )
    assert bench.last_rows["a"][wire.FINISH_REASON] == wire.FINISH_STOP
    assert bench.last_rows["a"][wire.STOP_REASON] == stop
    later = bench.run("b", prompt(4), max_tokens=200, stop_token_ids=[stop], min_tokens=71)
    assert len(later) > 70


def test_output_ends_where_the_model_length_does(bench):
    assert len(bench.run("a", prompt(290), max_tokens=None)) == 10


def test_logprobs_come_with_every_token_for_who_asked(bench):
    bench.add("a", prompt(4), max_tokens=3, logprobs=2)
    bench.add("b", prompt(4, start=9), max_tokens=3)
    for _ in range(3):
        bench.step()
        ids, values, ranks, _ = bench.last_rows["a"][wire.LOGPROBS]
        assert (ids[1], values[1], ranks[1]) == ([1, 3], [1, 3], [1])
        assert bench.last_rows["b"][wire.LOGPROBS] is None


def test_prompt_logprobs_come_with_the_first_output(bench):
    bench.run("a", prompt(4), max_tokens=2, prompt_logprobs=1)
    ids = bench.first_rows["a"][wire.PROMPT_LOGPROBS][0]
    assert ids[:2] == ["int32", [3, 2]]
    assert bench.last_rows["a"][wire.PROMPT_LOGPROBS] is None


def test_resumed_request_prefills_what_was_restored_and_goes_on_behind_it(bench):
    whole = bench.run("a", prompt(10), max_tokens=150)
    bench.scheduler.clear_prefix_cache()
    bench.add("b", prompt(10), max_tokens=150, extra_args={RESUMED: whole[:20]})
    assert bench.scheduler.plan(bench.now_s)
    assert bench.scheduler.step_work().prefill_tokens == 30
    while not bench.has_ended("b"):
        bench.step()
    assert bench.tokens["b"] == whole[20:]
    assert bench.first_rows["b"][wire.PREFILL_STATS] is None


def test_resumed_request_may_lose_its_blocks_like_any_other(make_bench):
    whole = make_bench().run("b", prompt(10), max_tokens=60)
    bench = make_bench(num_blocks=24)
    bench.add("a", prompt(8, start=50), max_tokens=60)
    bench.add("b", prompt(10), max_tokens=60, extra_args={RESUMED: whole[:20]})
    num_rows = 0
    while not bench.has_ended("b"):
        num_rows += "b" in bench.step()
    assert bench.tokens["b"] == whole[20:]
    assert bench.now_s - 100.0 > num_rows + 1  # it stood still in between
