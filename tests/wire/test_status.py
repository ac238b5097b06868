"""docs/status.md and the structs that it describes."""

import re
from pathlib import Path

import pytest

from nodeserve.wire.control import DispatcherStatus, StatusReply
from nodeserve.wire.status import ListenerLoad, ProcessStatus, RequestTrace, WorkerLoad

PAGE = Path(__file__).parents[2] / "docs" / "status.md"

SECTIONS = {
    "The node": StatusReply,
    "`processes[]`": ProcessStatus,
    "`processes[].load` and `requests.workers[]`": WorkerLoad,
    "`requests`": DispatcherStatus,
    "`requests.listeners[]`": ListenerLoad,
    "`requests.recent[]`": RequestTrace,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_the_status_is_described(section):
    _, found, rest = PAGE.read_text().partition(f"\n## {section}\n")
    assert found
    keys = re.findall(r"^\| `(\w+)` \|", rest.partition("\n## ")[0], re.MULTILINE)
    assert sorted(keys) == sorted(SECTIONS[section].__struct_fields__)
