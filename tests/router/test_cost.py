import pytest

from nodeserve.ids import Generation, LegId, RequestId
from nodeserve.router.cost import (
    HANDOFF_TOKENS,
    Choice,
    Fleet,
    Placement,
    choose_decode,
    choose_prefill,
    choose_whole,
    decode_share,
    place,
    uncached_tokens,
)
from nodeserve.router.messages import LegKind, LoadReported, RequestArrived, WorkerAttached
from nodeserve.router.worker_view import PlacedLeg, WorkerView
from nodeserve.wire.kinds import Role

LONG = RequestArrived(RequestId("long"), prompt_tokens=1600, max_tokens=16)
WHOLE_ONLY = RequestArrived(RequestId("whole"), prompt_tokens=1600, max_tokens=16, whole=True)


def worker(number: int, role: Role = Role.AGGREGATED, *, num_blocks: int = 1000) -> WorkerView:
    return WorkerView(WorkerAttached(Generation(number), role, num_blocks, 16, 64))


def load(view: WorkerView, *, blocks: int = 1, tokens: int = 0) -> WorkerView:
    leg_id = LegId(f"other.{len(view.legs)}")
    view.place_leg(leg_id, PlacedLeg(LegKind.WHOLE, blocks, tokens))
    return view


def fill(view: WorkerView) -> WorkerView:
    return load(view, blocks=view.num_blocks)


def taken(choice: Choice | None) -> WorkerView:
    assert choice is not None
    return choice.worker


def where(request, views, cached=None, **settings):
    defaults = {"local_prefill_tokens": 0, "may_reserve": True, "may_prefill_ahead": False}
    return place(request, Fleet.of(views), cached or {}, **{**defaults, **settings})


def test_workers_too_small_for_a_prompt_are_left_out_of_the_fleet():
    views = [
        worker(1, Role.PREFILL, num_blocks=100),
        worker(2, Role.DECODE, num_blocks=99),
        worker(3, num_blocks=101),
    ]
    fleet = Fleet.of(views)
    assert fleet.that_hold(99 * 16) is fleet
    left = fleet.that_hold(100 * 16)
    assert (left.prefill, left.decode, left.aggregated) == ((views[0],), (), (views[2],))
    assert fleet.that_hold(101 * 16 + 1) == Fleet()


def test_at_least_one_token_is_computed_even_when_all_is_cached():
    view = worker(1)
    assert uncached_tokens(LONG, view, {}) == 1600
    assert uncached_tokens(LONG, view, {Generation(1): 30}) == 1600 - 30 * 16
    assert uncached_tokens(LONG, view, {Generation(1): 100}) == 1


def test_the_prefill_worker_is_the_one_with_the_least_to_compute_before_it_is_done():
    idle, cached, busy = worker(1), load(worker(2), tokens=700), load(worker(3), tokens=900)
    have = {Generation(2): 50, Generation(3): 50}
    chosen = choose_prefill(LONG, [idle, cached, busy], have)
    assert chosen == (1500, cached)


def test_among_equals_the_prefill_worker_has_fewer_legs_and_is_older():
    one, two, three = load(worker(1)), worker(2), worker(3)
    assert taken(choose_prefill(LONG, [one, two, three], {})) is two


def test_a_worker_without_room_is_not_chosen():
    full, open_ = fill(worker(1)), load(worker(2), tokens=5000)
    assert taken(choose_prefill(LONG, [full, open_], {})) is open_
    assert taken(choose_whole(LONG, [full, open_], {})) is open_
    assert choose_decode(LONG, [full, open_], {}) is open_
    assert choose_prefill(LONG, [full], {}) is None
    assert choose_whole(LONG, [full], {}) is None
    assert choose_decode(LONG, [full], {}) is None


def test_a_whole_leg_prefers_the_worker_with_fewer_sequences():
    busy, calm = load(load(worker(1))), load(worker(2))
    assert taken(choose_whole(LONG, [busy, calm], {})) is calm


def test_decode_goes_where_each_sequence_has_the_most_free_blocks():
    many, few = worker(1), load(worker(2), blocks=300)
    for _ in range(3):
        load(many, blocks=10)
    assert choose_decode(LONG, [many, few], {}) is few


def test_decode_prefers_a_worker_that_has_the_prefix():
    without, having = worker(1), worker(2)
    assert choose_decode(LONG, [without, having], {Generation(2): 80}) is having


def test_decode_believes_the_engine_when_it_says_that_it_is_fuller():
    one, two = load(worker(1)), load(worker(2))
    one.report(LoadReported(Generation(1), running=1, waiting=0, kv_usage=0.8))
    assert choose_decode(LONG, [one, two], {}) is two


def test_a_fleet_leaves_out_who_drains_and_sorts_by_age():
    views = [worker(3, Role.DECODE), worker(2, Role.DECODE), worker(1, Role.PREFILL)]
    views[0].draining = True
    fleet = Fleet.of(views)
    assert [view.generation for view in fleet.decode] == [2]
    assert [view.generation for view in fleet.prefill] == [1]
    assert fleet.aggregated == ()


def test_whoever_is_left_decodes_but_never_the_owner():
    p1, p2 = worker(1, Role.PREFILL), worker(2, Role.PREFILL)
    d, a = worker(3, Role.DECODE), worker(4)
    assert Fleet.of([p1, p2, d, a]).decoders_beside(Generation(1)) == (d,)
    assert Fleet.of([p1, p2, a]).decoders_beside(Generation(1)) == (a,)
    assert Fleet.of([p1, p2]).decoders_beside(Generation(1)) == (p2,)
    assert Fleet.of([p1]).decoders_beside(Generation(1)) == ()
    assert Fleet.of([d, a]).decoders_beside(Generation(3)) == (a,)


def test_a_long_prompt_is_prefilled_remotely_and_a_decode_worker_is_kept_for_it():
    p, d = worker(1, Role.PREFILL), worker(2, Role.DECODE)
    assert where(LONG, [p, d]) == Placement(LegKind.PREFILL, p, d)


@pytest.mark.parametrize(("limit", "kind"), [(1599, LegKind.PREFILL), (1600, LegKind.WHOLE)])
def test_a_short_prompt_runs_whole_on_the_decode_worker(limit, kind):
    views = [worker(1, Role.PREFILL), worker(2, Role.DECODE)]
    assert where(LONG, views, local_prefill_tokens=limit).kind is kind


def test_a_mostly_cached_prompt_counts_as_short():
    p, d = worker(1, Role.PREFILL), worker(2, Role.DECODE)
    placed = where(LONG, [p, d], {Generation(2): 99}, local_prefill_tokens=16)
    assert placed == Placement(LegKind.WHOLE, d)


def test_a_busy_worker_keeps_those_whose_prefix_it_has_only_as_long_as_that_pays():
    p, having, idle = worker(1, Role.PREFILL), worker(2, Role.DECODE), worker(3, Role.DECODE)
    cached = {Generation(2): 99}
    share = decode_share(LONG)
    for _ in range((1600 + HANDOFF_TOKENS - 16) // share):
        load(having)
        placed = where(LONG, [p, having, idle], cached, local_prefill_tokens=16)
        assert placed == Placement(LegKind.WHOLE, having)
    load(having)
    placed = where(LONG, [p, having, idle], cached, local_prefill_tokens=16)
    assert placed == Placement(LegKind.PREFILL, p, idle)


def test_a_prefix_that_the_prefill_worker_has_too_holds_nobody_on_a_busy_decode_worker():
    p, having, idle = worker(1, Role.PREFILL), load(worker(2, Role.DECODE)), worker(3, Role.DECODE)
    for _ in range(HANDOFF_TOKENS // decode_share(LONG) + 1):
        load(having)
    cached = {Generation(1): 99, Generation(2): 99}
    placed = where(LONG, [p, having, idle], cached, local_prefill_tokens=16)
    assert placed == Placement(LegKind.PREFILL, p, idle)


def test_a_prompt_that_is_short_everywhere_stays_local_however_busy_that_is():
    p = worker(1, Role.PREFILL)
    decoders = [load(worker(n, Role.DECODE), tokens=9000) for n in (2, 3)]
    load(decoders[0])
    placed = where(LONG, [p, *decoders], local_prefill_tokens=1600)
    assert placed == Placement(LegKind.WHOLE, decoders[1])


def test_an_aggregated_worker_computes_a_prefix_again_when_that_costs_less_than_the_company():
    having, idle = worker(1), worker(2)
    cached = {Generation(1): 10}
    short_answer = RequestArrived(RequestId("short"), prompt_tokens=1600, max_tokens=1)
    long_answer = RequestArrived(RequestId("long"), prompt_tokens=1600, max_tokens=4000)
    load(having)
    assert taken(choose_whole(short_answer, [having, idle], cached)) is having
    assert taken(choose_whole(long_answer, [having, idle], cached)) is idle


def test_a_short_prompt_does_not_run_ahead_of_its_decode_worker():
    p, d = worker(1, Role.PREFILL), fill(worker(2, Role.DECODE))
    assert where(LONG, [p, d], local_prefill_tokens=2000, may_prefill_ahead=True) is None


def test_a_request_that_cannot_be_handed_over_runs_whole_on_a_decode_worker():
    p, d = worker(1, Role.PREFILL), worker(2, Role.DECODE)
    assert where(WHOLE_ONLY, [p, d]) == Placement(LegKind.WHOLE, d)
    assert where(WHOLE_ONLY, [p, fill(d)]) is None


def test_without_a_prefill_worker_all_runs_whole():
    d, a = load(worker(1, Role.DECODE)), worker(2)
    assert where(LONG, [d, a]) == Placement(LegKind.WHOLE, a)
    assert where(LONG, [d]) == Placement(LegKind.WHOLE, d)


def test_without_a_decode_worker_aggregated_ones_go_first_and_prefill_ones_help():
    p, a = worker(1, Role.PREFILL), load(worker(2), tokens=9000)
    assert where(LONG, [p, a]) == Placement(LegKind.WHOLE, a)
    assert where(LONG, [p, fill(a)]) == Placement(LegKind.WHOLE, p)
    assert where(LONG, [p]) == Placement(LegKind.WHOLE, p)


def test_without_any_worker_a_request_waits():
    assert where(LONG, []) is None


def test_an_aggregated_worker_competes_with_the_pair_by_cost():
    p, d, a = worker(1, Role.PREFILL), worker(2, Role.DECODE), worker(3)
    assert where(LONG, [p, d, a]) == Placement(LegKind.WHOLE, a)
    load(a, tokens=HANDOFF_TOKENS + 100)
    assert where(LONG, [p, d, a]) == Placement(LegKind.PREFILL, p, d)
    load(p, tokens=1000)
    assert where(LONG, [p, d, a]) == Placement(LegKind.WHOLE, a)


def test_when_the_prefill_workers_are_full_an_aggregated_one_helps():
    p, d = fill(worker(1, Role.PREFILL)), worker(2, Role.DECODE)
    assert where(LONG, [p, d]) is None
    a = load(worker(3), tokens=9000)
    assert where(LONG, [p, d, a]) == Placement(LegKind.WHOLE, a)


def test_a_prefill_runs_ahead_of_a_full_decode_worker_only_where_allowed():
    p, d = worker(1, Role.PREFILL), fill(worker(2, Role.DECODE))
    assert where(LONG, [p, d]) is None
    assert where(LONG, [p, d], may_prefill_ahead=True) == Placement(LegKind.PREFILL, p, None)


def test_room_that_others_wait_for_is_not_taken():
    p, d = worker(1, Role.PREFILL), worker(2, Role.DECODE)
    assert where(LONG, [p, d], may_reserve=False) is None
    assert where(WHOLE_ONLY, [p, d], may_reserve=False) is None
    assert where(LONG, [worker(3)], may_reserve=False) is None
    ahead = where(LONG, [p, d], may_reserve=False, may_prefill_ahead=True)
    assert ahead == Placement(LegKind.PREFILL, p, None)
