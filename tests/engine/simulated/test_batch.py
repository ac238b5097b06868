import random

import pytest

from nodeserve.engine.simulated.batch import BatchChanges, Unrecorded
from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.wire.accounting import Member


class Followed:
    """A scheduler whose batch is followed by its changes alone."""

    def __init__(self, limits, request_with, vocabulary):
        self.changes = BatchChanges()
        self.scheduler = Scheduler(limits, changes=self.changes)
        self._request, self._vocabulary = request_with, vocabulary
        self._order = 0
        self.batch = {}
        self.now_s = 0.0

    def add(self, request_id, prompt, **sampling):
        self._order += 1
        request = self._request(request_id, prompt, **sampling)
        self.scheduler.add(
            Sequence(request, self._vocabulary, max_model_len=300, order=self._order), self.now_s
        )

    def step(self):
        """Return what the step computed as followed and as it was."""
        if not self.scheduler.plan(self.now_s):
            return None
        joined, left = self.changes.take()
        for leg_id in left:
            del self.batch[leg_id]
        self.batch.update({member.leg_id: member.context for member in joined})
        followed = dict(self.batch)
        truth = {s.request_id: s.num_tokens - 1 for s in self.scheduler._decoding}
        self.scheduler.finish_step(self.now_s)
        self.batch = {leg_id: context + 1 for leg_id, context in self.batch.items()}
        self.now_s += 1.0
        return followed, truth


@pytest.fixture
def follow(limits_with, request_with, vocabulary):
    return lambda **limits: Followed(limits_with(**limits), request_with, vocabulary)


def test_a_request_enters_behind_its_prompt_and_leaves_with_its_last_token(follow):
    followed = follow()
    followed.add("a", [1, 2, 3, 4, 5], max_tokens=3)
    assert [followed.step()[0] for _ in range(3)] == [{}, {"a": 5}, {"a": 6}]
    assert followed.changes.take() == ([], ["a"])


def test_chunks_say_what_was_computed_before_them(follow):
    followed = follow(max_num_batched_tokens=32)
    scheduler = followed.scheduler
    followed.add("a", list(range(70)), max_tokens=1)
    found = []
    for _ in range(3):
        scheduler.plan(0.0)
        found += scheduler.chunks()
        scheduler.finish_step(0.0)
    assert found == [Member("a", 32, 0), Member("a", 32, 32), Member("a", 6, 64)]


def test_who_comes_and_goes_between_two_plans_was_never_there(follow):
    followed = follow()
    followed.add("a", [1, 2, 3], max_tokens=9)
    followed.step()
    followed.scheduler.abort(["a"])
    assert followed.changes.take() == ((), ())


def test_an_engine_that_nobody_accounts_for_keeps_nothing(follow, limits_with):
    changes = Unrecorded()
    scheduler = Scheduler(limits_with(), changes=changes)
    assert scheduler.chunks() == []
    assert changes.take() == ((), ())


@pytest.mark.parametrize("seed", range(15))
def test_followed_by_its_changes_the_batch_is_what_it_is(follow, seed):
    rng = random.Random(seed)
    followed = follow(num_blocks=40, prefix_caching=bool(seed % 2))
    live = []
    for number in range(400):
        if rng.random() < 0.3:
            live.append(f"r{number}")
            prompt = [rng.randrange(1000) for _ in range(rng.randrange(1, 40))]
            followed.add(live[-1], prompt, max_tokens=rng.randrange(1, 60))
        if live and rng.random() < 0.05:
            followed.scheduler.abort([live.pop(rng.randrange(len(live)))])
        if (step := followed.step()) is not None:
            assert step[0] == step[1]
