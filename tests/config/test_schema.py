import re
import typing
from pathlib import Path

import msgspec
import pytest

from nodeserve.config.schema import FileConfig
from nodeserve.wire.control import DispatcherStatus, StatusReply
from nodeserve.wire.kv_control import (
    KvEngineLoad,
    KvListenerLoad,
    KvPrefix,
    KvTierLoad,
    KvTierStatus,
)
from nodeserve.wire.status import (
    HandoffStats,
    ListenerLoad,
    ProcessStatus,
    Quantiles,
    RequestTrace,
    WorkerLoad,
)
from tests.config.conftest import node_of, write_model

DOCS = Path(__file__).parents[2] / "docs"


def tables_of(struct: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """Return the keys whose values are tables, with their structs; those within them too."""
    found = {}
    for name, hint in typing.get_type_hints(struct).items():
        for option in (hint, *typing.get_args(hint)):
            if isinstance(option, type) and issubclass(option, msgspec.Struct):
                found[name] = option
                found |= {f"{name}.{key}": table for key, table in tables_of(option).items()}
    return found


def rows(path: Path, heading: str) -> list[str]:
    """Return the first cells of the tables below a heading."""
    section = path.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def test_every_key_of_the_file_is_described_and_no_other():
    tables = tables_of(FileConfig)
    top = [field for field in FileConfig.__struct_fields__ if field not in tables]
    assert rows(DOCS / "configuration.md", "Top level") == top
    for name, struct in tables.items():
        heading = f"`[[{name}]]`" if name in {"workers", "listener"} else f"`[{name}]`"
        keys = [key for key in struct.__struct_fields__ if f"{name}.{key}" not in tables]
        assert rows(DOCS / "configuration.md", heading) == keys, name


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("The node", StatusReply),
        ("`processes[]`", ProcessStatus),
        ("`processes[].load` and `requests.workers[]`", WorkerLoad),
        ("`requests`", DispatcherStatus),
        ("`requests.listeners[]`", ListenerLoad),
        ("`requests.recent[]`", RequestTrace),
    ],
)
def test_every_key_of_the_status_is_described_and_no_other(heading, struct):
    assert sorted(rows(DOCS / "status.md", heading)) == sorted(struct.__struct_fields__)


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("The tiers", KvTierStatus),
        ("`tiers[]`", KvTierLoad),
        ("`listeners[]`", KvListenerLoad),
        ("`engines[]`", KvEngineLoad),
        ("`prefixes[]`", KvPrefix),
    ],
)
def test_every_key_of_the_tiers_is_described_and_no_other(heading, struct):
    assert sorted(rows(DOCS / "kv.md", heading)) == sorted(struct.__struct_fields__)


def test_the_small_parts_of_the_status_are_described_too():
    text = (DOCS / "status.md").read_text()
    for name in (*HandoffStats.__struct_fields__, *Quantiles.__struct_fields__):
        assert f"`{name}`" in text


@pytest.fixture
def example(load, tmp_path):
    model = write_model(tmp_path / "m")
    return lambda name: load(
        (DOCS / "examples" / name).read_text(), node_of(8, 2), model=str(model)
    )


def test_the_h100_example_is_four_of_each(example):
    config = example("8xh100.toml")
    assert [worker.role.value for worker in config.workers] == ["prefill"] * 4 + ["decode"] * 4
    assert {len(worker.gpu_uuids) for worker in config.workers} == {1}
    assert [listener.gateway.value for listener in config.listeners] == ["rust", "python"]


def test_the_gpt_oss_example_is_two_groups_of_four(example):
    config = example("gpt-oss-120b.toml")
    assert [(worker.name, worker.tp) for worker in config.workers] == [
        ("prefill-0", 4),
        ("decode-0", 4),
    ]
    assert config.workers[1].gpu_uuids == ("GPU-4", "GPU-5", "GPU-6", "GPU-7")


def test_every_example_is_tested():
    assert {path.name for path in (DOCS / "examples").iterdir()} == {
        "8xh100.toml",
        "gpt-oss-120b.toml",
    }
