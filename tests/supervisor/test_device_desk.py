import asyncio

from nodeserve.lifecycle.messages import FindingsCleared, FindingsReported
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.supervisor.device_desk import DeviceDesk
from nodeserve.wire.control import CommandReply
from nodeserve.wire.device_control import DeviceReported, HealthClear
from nodeserve.wire.device_report import DeviceReport, DeviceSample
from nodeserve.wire.kinds import ProcessKind
from tests.lifecycle.wrong import PLANS, Ward, finding

SAMPLE = DeviceSample(meter="g3", index=3, name="x", age_s=0.25, power_mw=7)


class Desk:
    """A desk of a node that is up; with a monitor where ``plans`` has one."""

    def __init__(self, plans=PLANS):
        self.ward = Ward(plans)
        self.applied, self.answers = [], []
        self.desk = DeviceDesk(self.ward.life, apply=self.apply, answer=self.answer)

    def apply(self, event):
        self.applied.append(event)
        self.ward.tell(event)

    def answer(self, identity, message):
        self.answers.append((identity, message))

    def report(self, *findings):
        report = DeviceReport(samples=(SAMPLE,), findings=findings)
        self.desk.hear(b"7", DeviceReported(generation=7, report=report))


def at_desk(body):
    async def run():
        await body(Desk())

    asyncio.run(run())


def test_a_report_is_kept_and_its_findings_handed_on():
    async def body(one):
        one.ward.up()
        one.report(finding("g3", "fence"))
        assert one.applied == [FindingsReported((finding("g3", "fence"),))]
        (device,) = one.desk.devices
        assert device.age_s >= SAMPLE.age_s
        assert (device.meter, device.power_mw) == ("g3", 7)
        one.report()
        assert [f.meter for f in one.desk.findings] == ["g3"]  # fenced until it is cleared

    at_desk(body)


def test_nothing_is_known_before_the_first_report():
    async def body(one):
        assert one.desk.devices == one.desk.findings == ()

    at_desk(body)


def test_what_is_cleared_is_said_to_who_asked_and_refused_where_there_is_nothing():
    async def body(one):
        one.ward.up()
        one.report(finding("g3", "fence"), finding("g3", "warn", signal="xid_2"))
        one.desk.hear(b"c1", HealthClear(meter="g3"))
        one.desk.hear(b"c1", HealthClear(meter="g3"))
        one.desk.hear(b"c1", HealthClear())
        assert one.applied[-1] == FindingsCleared(None)
        replies = [reply for identity, reply in one.answers if identity == b"c1"]
        assert replies[0] == CommandReply(detail="GPU g3: 2 findings are cleared")
        assert "GPU g3 has no finding" in replies[1].error
        assert replies[1].exit_code == 65
        assert replies[2] == CommandReply(detail="all GPUs: 0 findings are cleared")

    at_desk(body)


def test_the_monitor_hears_what_is_cleared():
    async def body(_):
        monitor = SlotPlan("monitor", ProcessKind.MONITOR, "forkserver")
        one = Desk([*PLANS, monitor])
        one.ward.begin()
        one.report(finding("g3", "warn"))
        one.desk.hear(b"c1", HealthClear(meter="g3"))
        identity = str(one.ward.generation("monitor")).encode()
        assert (identity, HealthClear(meter="g3")) in one.answers

    at_desk(body)
