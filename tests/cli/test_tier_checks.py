import os
from pathlib import Path

import pytest

from nodeserve.cli import tier_checks
from nodeserve.cli.checks import Verdict
from nodeserve.cli.tier_checks import (
    check_memory_nodes,
    check_tier_directories,
    check_tier_memory,
)
from nodeserve.config.facts import Memory
from tests.config.conftest import node_of

GIB = 1 << 30
PLENTY = Memory(total_bytes=512 * GIB, available_bytes=400 * GIB)


def test_a_machine_with_gpus_is_told_how_large_a_host_tier_could_be():
    found = check_tier_memory(PLENTY, (0, 0), node_of(8, 2))
    assert found.verdict is Verdict.OK
    assert found.found == "400.0 GiB of 512.0 GiB free, no huge pages set aside"
    assert found.advice == "`--kv-host 200GiB` keeps KV of prompts that come again"


def test_too_few_huge_pages_are_said_where_there_are_some():
    found = check_tier_memory(PLENTY, (1024, 1000), node_of(8, 2))
    assert "1000 of 1024 huge pages free" in found.found
    assert "102400 huge pages would hold it" in found.advice


def test_little_memory_beside_gpus_is_a_warning_and_none_without_gpus():
    little = Memory(total_bytes=16 * GIB, available_bytes=4 * GIB)
    assert check_tier_memory(little, (0, 0), node_of(1, 2)).verdict is Verdict.WARN
    assert check_tier_memory(little, (0, 0), node_of(0, 2)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("nodes", "gpus", "verdict"),
    [
        ([0, 1], 8, Verdict.OK),
        ([0], 8, Verdict.WARN),
        ([], 8, Verdict.OK),
        ([0], 0, Verdict.OK),
    ],
)
def test_gpus_need_memory_on_their_own_nodes(nodes, gpus, verdict):
    assert check_memory_nodes(nodes, node_of(gpus, 2)).verdict is verdict


def test_a_directory_is_tried_and_left_as_it_was(tmp_path):
    (found,) = check_tier_directories([tmp_path])
    assert found.verdict in (Verdict.OK, Verdict.WARN)
    assert "free" in found.found
    assert not any(tmp_path.iterdir())


def test_a_file_system_without_o_direct_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(tier_checks, "takes_direct_writes", lambda directory: False)
    (found,) = check_tier_directories([tmp_path])
    assert found.verdict is Verdict.WARN
    assert "no O_DIRECT" in found.found


def test_a_directory_that_will_be_made_is_tried_by_its_parent(tmp_path):
    (found,) = check_tier_directories([tmp_path / "new"])
    assert found.verdict in (Verdict.OK, Verdict.WARN)
    assert found.found.startswith("will be made, ")
    assert not any(tmp_path.iterdir())


def test_a_directory_that_cannot_be_used_fails():
    (found,) = check_tier_directories([Path("/proc") / str(os.getpid()) / "none"])
    assert found.verdict is Verdict.FAIL
    assert found.found
