"""A host tier whose books are checked after each test."""

import pytest

from tests.kv.tiers import Talk


@pytest.fixture
def talks():
    made = []

    def make(num_slots=8, **config):
        talk = Talk(num_slots, **config)
        made.append(talk)
        return talk

    yield make
    for talk in made:
        talk.tier.check()


@pytest.fixture
def talk(talks):
    made = talks()
    made.join(1, 2)
    return made
