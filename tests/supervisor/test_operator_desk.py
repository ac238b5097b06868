import asyncio
import os

import msgspec

from nodeserve.config.node import GatewayKind, Listener, NodeConfig, Worker
from nodeserve.engine.shared_counts import SharedCounts
from nodeserve.errors import RequestError
from nodeserve.gateway.launch import counts_path
from nodeserve.lifecycle.messages import FindingsReported, NodeStarted, ProcessReady
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.process import Exited, Phase, StopRequested
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor import operator_desk
from nodeserve.supervisor.operator_desk import OperatorDesk, Outside
from nodeserve.supervisor.plan import slot_plans
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported
from nodeserve.wire.device_report import DeviceReport, DeviceSample
from nodeserve.wire.kinds import Role
from nodeserve.wire.kv_control import KvDone, KvTierStatus, KvTierStatusRequest
from nodeserve.wire.status import ListenerLoad
from tests.lifecycle.wrong import finding

CONFIG = NodeConfig(
    model="/models/m",
    served_model_names=("m",),
    runtime_dir="/run/d",
    listeners=(Listener(name="api", socket="/run/a.sock", gateway=GatewayKind.RUST),),
    workers=(Worker(name="decode-0", role=Role.DECODE, tp=2),),
    simulate="1xh100-sxm",
)


class NoChildren:
    def get(self, generation):
        return None


class Tiers:
    """A tier desk that answers at once."""

    def __init__(self):
        self.account = None
        self.said = []

    async def status(self, within_s):
        return self.account

    def heard(self, answer):
        self.said.append(answer)

    def ask(self, question, reply):
        reply(KvTierStatus(state="serving"))


class Office:
    """A desk with a node behind it that never starts a real process."""

    def __init__(self):
        self.life = NodeLife(slot_plans(CONFIG), Patience())
        self.applied, self.told, self.replies = [], [], asyncio.Queue()
        self.refuse = None
        self.tiers = Tiers()
        outside = Outside(
            tiers=self.tiers,
            apply=self.apply,
            tell=self.told.append,
            answer=lambda identity, reply: self.replies.put_nowait(reply),
        )
        self.rollout = Rollout()
        self.desk = OperatorDesk(
            CONFIG,
            self.life,
            NoChildren(),
            outside,
            rollout=self.rollout,
            started_s=0.0,
        )
        self.life.handle(NodeStarted(), now_s=0.0)
        for name in ("forkserver", "dispatcher"):
            self.life.handle(ProcessReady(self.life.slots[name].generation), now_s=0.0)

    def apply(self, event):
        self.applied.append(event)
        if self.refuse is not None:
            raise self.refuse

    def ask(self, message):
        self.desk.hear(b"c1", message)

    async def reply(self):
        async with asyncio.timeout(5):
            return await self.replies.get()


def in_office(body):
    async def run():
        await body(Office())

    asyncio.run(run())


def test_status_lists_every_process_with_the_dispatchers_account():
    async def body(office):
        office.ask(control.StatusRequest())
        await asyncio.sleep(0)
        (question,) = office.told
        answer = control.DispatcherStatus(call_id=question.call_id, queued_requests=3)
        office.ask(answer)
        status = await office.reply()
        assert status.requests == answer
        assert (status.state, status.socket) == ("starting", "/run/a.sock")
        names = [process.name for process in status.processes]
        assert names == ["supervisor", "forkserver", "dispatcher", "decode-0", "gateway-api"]
        assert status.processes[0].pid == os.getpid()
        assert status.processes[3].role is Role.DECODE
        assert [process.tp for process in status.processes] == [None, None, None, 2, None]

    in_office(body)


def test_status_shows_devices_and_what_is_wrong_with_them():
    async def body(office):
        sample = DeviceSample(meter="sim-0", index=0, name="x", age_s=0.0)
        wrong = finding("sim-0", "fence")
        report = DeviceReport(samples=(sample,), findings=(wrong,))
        office.ask(DeviceReported(generation=9, report=report))
        assert office.applied == [FindingsReported((wrong,))]
        office.life.handle(office.applied[0], now_s=0.0)
        office.life.slots["dispatcher"].life.phase = Phase.STARTING
        office.ask(control.StatusRequest())
        status = await office.reply()
        assert [device.meter for device in status.devices] == ["sim-0"]
        assert status.findings == (wrong,)
        assert "GPU sim-0 has xid_1" in status.processes[3].detail
        assert status.state == "unavailable"

    in_office(body)


def test_a_dispatcher_that_is_not_there_yet_is_not_asked():
    async def body(office):
        office.life.slots["dispatcher"].life.phase = Phase.STARTING
        office.ask(control.StatusRequest())
        assert (await office.reply()).requests is None
        assert office.told == []

    in_office(body)


def test_status_tells_what_gateways_did_not_take(tmp_path):
    async def body(office):
        office.desk._config = msgspec.structs.replace(CONFIG, runtime_dir=str(tmp_path))
        counts = SharedCounts(counts_path(tmp_path, CONFIG.listeners[0]), 0, 1)
        counts.turn_away()
        office.ask(control.StatusRequest())
        await asyncio.sleep(0)
        (question,) = office.told
        loads = (ListenerLoad(name="api", running=1), ListenerLoad(name="other"))
        office.ask(control.DispatcherStatus(call_id=question.call_id, listeners=loads))
        api, other = (await office.reply()).requests.listeners
        assert (api.turned_away, api.running, other.turned_away) == (1, 1, 0)

    in_office(body)


def test_status_comes_without_a_dispatcher_too(monkeypatch):
    monkeypatch.setattr(operator_desk, "STATUS_DEADLINE_S", 0.01)

    async def body(office):
        office.ask(control.StatusRequest())
        assert (await office.reply()).requests is None

    in_office(body)


def test_a_refused_command_is_answered_with_the_reason():
    async def body(office):
        office.refuse = RequestError("worker decode-9 does not exist; this node has decode-0")
        office.ask(control.DrainRequest(worker="decode-9"))
        reply = await office.reply()
        assert "decode-9 does not exist" in reply.error
        assert reply.exit_code == RequestError.exit_code

    in_office(body)


def test_a_drain_is_answered_when_the_worker_is_down():
    async def body(office):
        office.ask(control.DrainRequest(worker="decode-0"))
        assert office.replies.empty()
        life = office.life.slots["decode-0"].life
        life.handle(StopRequested(grace_s=5), now_s=0.0)
        life.handle(Exited(), now_s=0.0)
        assert life.phase is Phase.DOWN
        office.desk.look_again()
        reply = await office.reply()
        assert reply.error is None
        assert reply.detail.startswith("decode-0 is drained and down; ")
        office.ask(control.DrainRequest(worker="decode-0"))
        assert (await office.reply()).detail == "decode-0 is drained already, and down"

    in_office(body)


def test_a_drain_and_a_restart_that_overtake_each_other_are_answered():
    async def body(office):
        slot = office.life.slots["decode-0"]
        office.ask(control.DrainRequest(worker="decode-0"))
        slot.generation += 1
        office.desk.look_again()
        assert "asked to start again before it was down" in (await office.reply()).error
        office.ask(control.RestartRequest(worker="decode-0"))
        slot.wanted, slot.life.phase = False, Phase.DOWN
        office.desk.look_again()
        assert "drained before it was ready" in (await office.reply()).error

    in_office(body)


def test_a_restart_that_a_stopping_node_cannot_finish_is_answered():
    async def body(office):
        office.ask(control.RestartRequest(worker="decode-0"))
        office.life.kept.phase = NodePhase.DRAINING
        office.desk.look_again()
        assert "the node is draining" in (await office.reply()).error

    in_office(body)


def test_a_restart_whose_worker_fails_is_answered_with_its_cause():
    async def body(office):
        office.ask(control.RestartRequest(worker="decode-0"))
        slot = office.life.slots["decode-0"]
        slot.life.handle(Exited(retryable=False), now_s=0.0)
        slot.detail = "no such model"
        office.desk.look_again()
        assert "no such model" in (await office.reply()).error

    in_office(body)


def test_a_message_that_is_not_for_the_supervisor_is_answered_as_such():
    async def body(office):
        office.ask(control.NodeDrained())
        assert "NodeDrained" in (await office.reply()).error

    in_office(body)


def test_the_tiers_account_is_part_of_the_status():
    async def body(office):
        office.life.slots["dispatcher"].life.phase = Phase.DOWN
        office.tiers.account = KvTierStatus(state="serving", lookups=7)
        office.ask(control.StatusRequest())
        assert (await office.reply()).kv.lookups == 7

    in_office(body)


def test_what_is_about_tiers_goes_to_their_own_desk():
    async def body(office):
        office.ask(KvTierStatusRequest())
        assert (await office.reply()).state == "serving"
        office.ask(KvDone(call_id=3))
        assert office.tiers.said == [KvDone(call_id=3)]

    in_office(body)
