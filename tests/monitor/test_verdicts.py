from nodeserve.monitor.verdicts import Unjudged
from nodeserve.wire.device_report import DeviceSample


def test_without_a_judge_nothing_is_wrong():
    judge = Unjudged()
    judge.take(DeviceSample(meter="g", index=0, name="x", age_s=0.0), now_s=1.0)
    judge.xid("g", 79, detail="", now_s=1.0)
    judge.lost("g", now_s=1.0)
    assert judge.findings(now_s=2.0) == ()
    assert judge.clear(None) == 0
