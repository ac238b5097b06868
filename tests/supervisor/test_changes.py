import logging

import msgspec

from nodeserve.config.diff import compare
from nodeserve.config.node import RouterSettings, TierSettings, Worker
from nodeserve.errors import RequestError
from nodeserve.lifecycle.messages import EndAsked, Replanned, RestartAsked, RoleAsked
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.changes import Changes
from nodeserve.supervisor.plan import slot_plans
from nodeserve.wire.control import SetRouting
from nodeserve.wire.kinds import Role
from tests.supervisor.estates import CONFIG


class Office:
    """Changes over a life that is told nothing."""

    def __init__(self, config=CONFIG):
        self.config = config
        self.life = NodeLife(slot_plans(config), Patience())
        self.life.kept.phase = NodePhase.READY
        for slot in self.life.slots.values():
            slot.life.phase = Phase.READY
        self.applied, self.told = [], []
        self.changes = Changes(self.life, Rollout(), apply=self.apply, tell=self.told.append)

    def apply(self, event):
        self.applied.append(event)
        if isinstance(event, RoleAsked):
            raise RequestError("it cannot")

    def reload(self, **fields):
        config, change = compare(self.config, msgspec.structs.replace(self.config, **fields))
        self.changes.begin(change, config)
        self.changes.go_on()


def test_the_dispatcher_is_told_and_nothing_restarts(caplog):
    caplog.set_level(logging.INFO)
    office = Office()
    office.reload(router=RouterSettings(max_queued_requests=5))
    assert office.told == [SetRouting(local_prefill_tokens=16, max_queued_requests=5)]
    assert {type(event) for event in office.applied} == {Replanned}
    assert "configuration_changes at once: router.max_queued_requests 10000 -> 5" in caplog.messages


def test_a_step_that_fails_is_logged_and_the_next_is_taken(caplog):
    office = Office()
    workers = (Worker(name="decode-0", role=Role.AGGREGATED),)
    office.reload(workers=workers, speedup=2.0)
    assert office.applied[0] == RoleAsked("decode-0", Role.AGGREGATED, force=True)
    assert office.applied[-1] == RestartAsked("decode-0", immediately=False)
    assert "configuration_step_failed it cannot" in caplog.messages


def test_nothing_goes_on_while_the_node_ends():
    office = Office()
    office.life.kept.phase = NodePhase.DRAINING
    office.reload(speedup=2.0)
    assert office.applied == []


def test_a_worker_that_does_not_come_back_is_told_of_once(caplog):
    caplog.set_level(logging.ERROR)
    office = Office()
    office.reload(speedup=2.0)
    office.life.slots["decode-0"].life.phase = Phase.BACKOFF
    office.changes.go_on()
    office.changes.go_on()
    assert caplog.messages == ["configuration_halted name=decode-0: the rest runs as before"]


def test_a_block_manager_with_other_settings_restarts_before_workers():
    office = Office(msgspec.structs.replace(CONFIG, tiers=TierSettings(host_bytes=1 << 30)))
    office.reload(tiers=TierSettings(host_bytes=2 << 30), speedup=2.0)
    assert office.applied[-1] == EndAsked("block-manager", start_again=True)
    (told,) = office.told
    assert told.names_listeners


def test_a_tier_that_comes_brings_its_block_manager_and_the_dispatcher_hears_of_it():
    office = Office()
    office.reload(tiers=TierSettings(host_bytes=1 << 30))
    (told,) = office.told
    assert told.names_listeners
    assert "block-manager" in [plan.name for plan in office.applied[0].plans]
    assert office.applied[-1] == RestartAsked("decode-0", immediately=False)
