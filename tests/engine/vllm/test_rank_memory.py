import mmap
from pathlib import Path
from uuid import uuid4

import pytest

from nodeserve.engine.vllm.rank_memory import forget_names


@pytest.fixture
def shared():
    """Two files of shared memory, mapped: one of this engine, one of another."""
    idents = [f"nodeserve-test-{uuid4().hex}" for _ in range(2)]
    paths = [Path(f"/dev/shm/{ident}-tp:0-[0-1]-cpushm_0") for ident in idents]
    maps = []
    for path in paths:
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            maps.append(mmap.mmap(file.fileno(), 4096))
    yield idents[0], *paths, maps[0]
    for mapped, path in zip(maps, paths, strict=True):
        mapped.close()
        path.unlink(missing_ok=True)


def test_the_names_of_an_engines_shared_memory_go_and_its_memory_stays(shared, monkeypatch):
    ident, ours, others, mapped = shared
    monkeypatch.setenv("VLLM_DIST_IDENT", ident)
    forget_names(None)
    forget_names(None)
    assert (ours.exists(), others.exists()) == (False, True)
    mapped[:5] = b"still"
    assert mapped[:5] == b"still"


def test_an_engine_without_such_memory_removes_nothing(shared, monkeypatch):
    monkeypatch.delenv("VLLM_DIST_IDENT", raising=False)
    forget_names(None)
    assert shared[1].exists()
