import itertools

import pytest

from nodeserve.device.base import XidSeen
from nodeserve.device.kernel_log import SwitchError
from nodeserve.monitor.kernel_line import MAX_RETRY_S, RETRY_S, KernelLine, with_meters

XID = XidSeen(number=79, source="kernel", text="gone", pci="0000:19:00", at_s=5.0)


class FakeLog:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.is_closed = False

    def fileno(self):
        return 42

    def take(self):
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.is_closed = True


@pytest.fixture
def opened():
    """Make an opener of these logs; it notes from when on each was wanted."""

    def make(*logs):
        left, since = list(logs), []

        def opener(since_s):
            since.append(since_s)
            return left.pop(0)

        return opener, since

    return make


def test_messages_are_taken_from_the_beginning_of_the_run(opened):
    opener, since = opened(FakeLog([XID]))
    line = KernelLine(opener, 3.0)
    assert line.fds() == []
    assert line.take(10.0) == [XID]
    assert (line.fds(), since) == ([42], [3.0])
    assert line.take(10.1) == []


def test_messages_that_end_are_opened_again_after_a_while_from_there_on(opened):
    first = FakeLog(OSError("ended"))
    opener, since = opened(first, FakeLog([XID]))
    line = KernelLine(opener, 3.0)
    assert line.take(10.0) == []
    assert first.is_closed
    assert line.fds() == []
    assert line.take(10.0 + RETRY_S - 0.1) == []
    assert line.take(10.0 + RETRY_S) == [XID]
    assert since == [3.0, 3.0], "nothing has been read yet"


def test_messages_that_end_at_once_are_asked_for_ever_more_seldom(opened):
    opener, since = opened(*(FakeLog(OSError("ended")) for _ in range(20)))
    line = KernelLine(opener, 0.0)
    opened_s = []
    for second in range(20_000):
        line.take(float(second))
        if len(since) > len(opened_s):
            opened_s.append(second)
    pauses = [after - before for before, after in itertools.pairwise(opened_s)]
    assert pauses[:4] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S]
    assert max(pauses) == MAX_RETRY_S


def test_messages_that_came_for_a_while_are_soon_asked_for_again_from_there_on(opened):
    lasting = FakeLog([], OSError("ended"))
    opener, since = opened(*(FakeLog(OSError("ended")) for _ in range(2)), lasting, FakeLog())
    line = KernelLine(opener, 3.0)
    for second in (0.0, 10.0, 30.0, 1000.0, 1000.0 + RETRY_S):
        line.take(second)
    assert since == [3.0, 3.0, 3.0, 30.0]


def test_messages_that_cannot_be_had_are_asked_for_once(opened):
    opener, since = opened(None)
    line = KernelLine(opener, 3.0)
    assert [line.take(at_s) for at_s in (1.0, 100.0, 1000.0)] == [[], [], []]
    assert since == [3.0]
    line.close()


def test_an_xid_goes_to_the_meter_of_its_gpu(caplog):
    other = XidSeen(number=13, source="kernel", text="", pci="0000:ff:00")
    own = XidSeen(number=48, source="nvml", text="", meter="g1")
    switch = SwitchError(number=28006, text="Non-fatal", pci="0000:c1:00")
    found = list(with_meters([XID, other, own, switch], {"0000:19:00": "g0"}))
    assert found == [("g0", XID), ("g1", own)]
    assert "nvswitch_error pci=0000:c1:00 number=28006" in caplog.text
