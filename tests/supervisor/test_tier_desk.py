import asyncio

import msgspec

from nodeserve.config.node import TierSettings
from nodeserve.errors import PeerError
from nodeserve.ids import Generation
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.supervisor import tier_desk
from nodeserve.supervisor.plan import slot_plans
from nodeserve.supervisor.tier_desk import TierDesk
from nodeserve.wire import control
from nodeserve.wire.kv_control import (
    KvClear,
    KvDone,
    KvEngineGone,
    KvPin,
    KvTierStatus,
    KvTierStatusRequest,
)
from tests.supervisor.estates import CONFIG

TIERED = msgspec.structs.replace(CONFIG, tiers=TierSettings(host_bytes=1 << 30))


class Office:
    """A desk with a block manager, generation 3, that says nothing by itself."""

    def __init__(self, config=TIERED, gone=()):
        self.life = NodeLife(slot_plans(config), Patience())
        self.sent, self.replies = asyncio.Queue(), asyncio.Queue()
        self.is_cleared, self.held = asyncio.Event(), 0
        self.is_cleared.set()
        self.desk = TierDesk(self.life, self.cleared, self.send, gone=gone)
        if config is TIERED:
            self.slot = self.life.slots["block-manager"]
            self.slot.generation = Generation(3)
            self.slot.life.phase = Phase.READY

    async def cleared(self, name):
        await self.is_cleared.wait()
        if self.held:
            self.held -= 1
            raise PeerError(f"what {name} had started has not ended")

    def send(self, identity, message):
        self.sent.put_nowait((identity, message))

    def ask(self, question):
        self.desk.ask(question, self.replies.put_nowait)

    async def said(self):
        async with asyncio.timeout(5):
            return await self.sent.get()

    async def settled(self):
        async with asyncio.timeout(5):
            await asyncio.gather(*self.desk._tasks)

    async def reply(self):
        async with asyncio.timeout(5):
            return await self.replies.get()


async def test_a_question_goes_to_the_block_manager_and_its_answer_comes_back():
    office = Office()
    office.ask(KvTierStatusRequest())
    identity, question = await office.said()
    assert identity == b"3"
    office.desk.heard(KvTierStatus(call_id=question.call_id, lookups=5))
    assert (await office.reply()).lookups == 5
    await asyncio.sleep(0)
    assert office.desk.is_settled


async def test_commands_are_answered_like_all_others():
    office = Office()
    office.ask(KvPin(key="ab"))
    _, question = await office.said()
    assert question.key == "ab"
    office.desk.heard(
        KvDone(call_id=question.call_id, error="nothing begins with ab", exit_code=65)
    )
    reply = await office.reply()
    assert reply == control.CommandReply(error="nothing begins with ab", exit_code=65)


async def test_answers_find_their_questions_whatever_their_order():
    office = Office()
    office.ask(KvClear(listener="a"))
    office.ask(KvClear(listener="b"))
    first, second = (await office.said())[1], (await office.said())[1]
    office.desk.heard(KvDone(call_id=second.call_id, detail="b is cleared"))
    office.desk.heard(KvDone(call_id=99))
    office.desk.heard(KvDone(call_id=first.call_id, detail="a is cleared"))
    assert [(await office.reply()).detail for _ in range(2)] == ["b is cleared", "a is cleared"]


async def test_a_node_without_tiers_says_how_to_have_them():
    office = Office(CONFIG)
    office.ask(KvTierStatusRequest())
    reply = await office.reply()
    assert reply.exit_code == 65
    assert "serve with --kv-host SIZE" in reply.error
    assert await office.desk.status(1.0) is None


async def test_a_block_manager_that_is_not_there_is_not_waited_for():
    office = Office()
    office.slot.life.phase = Phase.BACKOFF
    office.ask(KvClear())
    reply = await office.reply()
    said = "block-manager is backoff; see `nodeserve status`"
    assert (reply.exit_code, reply.error) == (69, said)
    assert await office.desk.status(1.0) is None


async def test_a_block_manager_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(tier_desk, "ANSWER_WITHIN_S", 0.01)
    office = Office()
    office.ask(KvClear())
    assert "has not answered within 0.01 s" in (await office.reply()).error
    assert await office.desk.status(0.01) is None


async def test_more_questions_than_can_be_under_way_are_refused(monkeypatch):
    monkeypatch.setattr(tier_desk, "MAX_CALLS", 2)
    office = Office()
    for _ in range(3):
        office.ask(KvTierStatusRequest())
    reply = await office.reply()
    assert (reply.exit_code, office.sent.qsize()) == (75, 2)
    office.desk.close()


async def test_a_worker_is_gone_when_all_of_its_processes_are():
    office = Office()
    office.is_cleared.clear()
    office.held = 2  # it has been killed twice and still lives
    office.desk.worker_ended("decode-0", 7)
    await asyncio.sleep(0)
    assert office.sent.empty()
    assert not office.desk.is_settled
    office.is_cleared.set()
    assert await office.said() == (b"3", KvEngineGone(generation=7))
    assert office.held == 0


async def test_who_died_while_there_was_no_block_manager_is_told_of_when_one_is_ready():
    office = Office(gone=[5])
    office.slot.life.phase = Phase.BACKOFF
    office.desk.worker_ended("decode-0", 7)
    await office.settled()
    assert office.sent.empty()
    office.desk.manager_ready(9)
    assert [(await office.said()) for _ in range(2)] == [
        (b"9", KvEngineGone(generation=5)),
        (b"9", KvEngineGone(generation=7)),
    ]


async def test_only_the_last_of_the_dead_are_remembered(monkeypatch):
    monkeypatch.setattr(tier_desk, "MAX_GONE", 3)
    office = Office(gone=range(10))
    assert office.desk.gone == [7, 8, 9]


async def test_a_node_without_tiers_remembers_nobody():
    office = Office(CONFIG)
    office.desk.worker_ended("decode-0", 7)
    await asyncio.sleep(0)
    assert (office.desk.gone, office.desk.is_settled) == ([], True)


async def test_who_cannot_be_reached_is_no_error():
    office = Office()

    def refuse(identity, message):
        raise PeerError("nobody has that identity")

    office.desk = TierDesk(office.life, office.cleared, refuse)
    office.desk.manager_ready(3)
    office.desk.worker_ended("decode-0", 7)
    await office.settled()
    assert office.desk.gone == [7]
    assert await office.desk.status(1.0) is None
