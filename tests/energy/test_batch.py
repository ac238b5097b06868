"""What members cause, whatever the batch costs to follow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserve.energy.batch import Batch, Caused, seconds_of
from nodeserve.energy.step_cost import Rates, step_cost
from nodeserve.wire.accounting import Member

RATES = Rates(token_s=2.7e-5, pair_s=8.8e-10, kv_s=4.9e-8, weights_s=6e-3)
STEP_S = 8e-3


class Plain:
    """Looks at every member in every step."""

    def __init__(self):
        self.members = {}
        self.caused = {}

    def run(self, num_steps, once=()):
        contexts = {leg: context for leg, (_, context) in self.members.items()}
        middle = [
            Member(leg, tokens, context + tokens * (num_steps - 1) / 2)
            for leg, (tokens, context) in self.members.items()
        ]
        seconds = [seconds_of(RATES, member) for member in [*middle, *once]]
        if not seconds:
            return
        atoms = [seconds_of(RATES, member) for member in once]
        cost = step_cost(
            sum(f for f, _ in seconds),
            sum(b for _, b in seconds),
            len(seconds),
            weights_s=RATES.weights_s,
            step_s=STEP_S,
            atoms=atoms,
        )
        part_s = RATES.weights_s / len(seconds)
        for step in range(num_steps):
            for leg, (tokens, _) in self.members.items():
                member = Member(leg, tokens, contexts[leg] + tokens * step)
                f, b = seconds_of(RATES, member)
                step_share_s = cost.equal + cost.compute * f + cost.memory * b
                self.cause(leg, Caused(step_share_s, f, b + part_s))
        for member, (f, b), share_s in zip(once, atoms, cost.atoms, strict=True):
            self.cause(member.leg_id, Caused(share_s, f, b + part_s).times(num_steps))
        for leg, (tokens, context) in self.members.items():
            self.members[leg] = (tokens, context + tokens * num_steps)

    def cause(self, leg, caused):
        self.caused[leg] = self.caused.get(leg, Caused()).plus(caused)


def same(caused, rel=1e-6):
    return {leg: pytest.approx(tuple(one), rel=rel, abs=1e-12) for leg, one in caused.items()}


RUN = st.tuples(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 5000)), max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
    st.lists(st.integers(1, 2000), max_size=2),
    st.booleans(),
)


@given(st.lists(RUN, max_size=12))
@settings(max_examples=150)
def test_sums_say_the_same_as_looking_at_every_member_in_every_step(runs):
    batch, plain = Batch(RATES), Plain()
    for num_steps, joined, left, chunks, is_gathered in runs:
        for leg in left:
            batch.leave(str(leg))
            plain.members.pop(str(leg), None)
        for leg, tokens, context in joined:
            batch.join(Member(str(leg), tokens, context))
            plain.members[str(leg)] = (tokens, context)
        once = [Member(f"chunk-{n}", tokens, 10 * n) for n, tokens in enumerate(chunks)]
        steps = 1 if once else num_steps
        batch.run(steps, STEP_S, once)
        plain.run(steps, once)
        if is_gathered:
            batch.gather()
    batch.gather()
    assert batch.caused == same(plain.caused)


def test_a_run_in_two_parts_causes_what_it_causes_whole():
    whole, parts = Batch(RATES), Batch(RATES)
    for batch in (whole, parts):
        batch.join(Member("a", 1, 100))
        batch.join(Member("b", 1, 4000))
    whole.run(100, STEP_S)
    parts.run(37.5, STEP_S)
    parts.gather()
    parts.run(62.5, STEP_S)
    whole.gather()
    parts.gather()
    assert parts.caused == same(whole.caused, rel=1e-4)


def test_steps_that_do_not_count_let_contexts_grow():
    late, on_time = Batch(RATES), Batch(RATES)
    late.join(Member("a", 1, 100))
    late.run(50, STEP_S, counted=0.0)
    late.gather()
    assert late.caused == {}
    on_time.join(Member("a", 1, 150))
    for batch in (late, on_time):
        batch.run(10, STEP_S)
        batch.gather()
    assert late.caused == same(on_time.caused)


def test_like_chunks_cause_alike_however_many_they_are():
    batch = Batch(RATES)
    batch.join(Member("a", 1, 100))
    batch.run(1, 0.1, [Member(f"chunk-{n}", 300, 0) for n in range(5)])
    assert len({caused for leg, caused in batch.caused.items() if leg != "a"}) == 1


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 30_000)), min_size=2, max_size=6),
    st.integers(0, 20),
)
def test_more_tokens_or_context_in_a_step_never_cause_less(chunks, num_members):
    batch = Batch(RATES)
    for number in range(num_members):
        batch.join(Member(f"m{number}", 1, 500))
    once = [Member(str(n), tokens, context) for n, (tokens, context) in enumerate(chunks)]
    batch.run(1, STEP_S, once)
    for one in once:
        for other in once:
            if one.tokens <= other.tokens and one.context <= other.context:
                lighter, heavier = batch.caused[one.leg_id], batch.caused[other.leg_id]
                pairs = zip(lighter, heavier, strict=True)
                assert all(less <= more * (1 + 1e-9) for less, more in pairs)


def test_an_empty_batch_causes_nothing():
    batch = Batch(RATES)
    batch.run(10, STEP_S)
    batch.gather()
    assert (len(batch), batch.caused) == (0, {})
