import pytest

from nodeserve.ids import RequestId
from nodeserve.router.admission import MAX_OVERTAKEN, MAX_SKIPPED
from nodeserve.router.decode_line import DecodeLine
from nodeserve.router.messages import RequestArrived
from nodeserve.router.request_flow import RequestFlow


@pytest.fixture
def line():
    return DecodeLine()


def push(line, name, turn, *, band=0, listener="", priority=0):
    request = RequestArrived(RequestId(name), 1, 1, priority=priority, listener=listener)
    flow = RequestFlow(request, turn)
    flow.turn = turn
    line.push(flow, band)


def test_it_goes_by_band_then_as_requests_started(line):
    push(line, "b", 2)
    push(line, "a", 1)
    push(line, "batch", 0, band=1, listener="batch")
    push(line, "urgent", 3, band=-1, listener="urgent")
    assert line.request_ids() == ["urgent", "a", "b", "batch"]
    assert [line.num_up_to(band) for band in (-2, -1, 0, 1)] == [0, 1, 3, 4]


def test_an_urgent_request_takes_its_own_listeners_best_place_and_nobody_elses(line):
    push(line, "chat", 1, listener="chat")
    push(line, "batch", 2, listener="batch")
    push(line, "chat2", 3, listener="chat")
    push(line, "urgent", 4, listener="batch", priority=-9)
    assert line.request_ids() == ["chat", "urgent", "chat2", "batch"]
    line.discard(RequestId("urgent"))
    line.discard(RequestId("urgent"))
    assert line.request_ids() == ["chat", "chat2", "batch"]
    assert RequestId("urgent") not in line


def test_who_gets_a_slot_leaves_and_few_are_looked_past(line):
    for turn in range(20):
        push(line, str(turn), turn)
    offered = []

    def try_decode(flow):
        offered.append(flow.turn)
        return flow.turn == 1

    line.walk(try_decode)
    assert offered == list(range(MAX_SKIPPED + 2))
    assert len(line) == 19
    assert "1" not in line


def test_whoever_was_passed_too_often_blocks_the_line_until_it_fits(line):
    push(line, "big", 0)
    for turn in range(1, MAX_OVERTAKEN + 10):
        push(line, f"small{turn}", turn)
        line.walk(lambda flow: flow.turn > 0)
    assert len(line) == 10
    line.walk(lambda _: True)
    assert len(line) == 0
