"""One rig per transport: a peer that owns a pool, and a pool of ours that its bytes go to."""

from pathlib import Path

import pytest

from tests.conformance.transfer.rig import Rig
from tests.support.fake_driver import build

AGES = {"before 13.0": ["-DFAKE_ONLY_OLD_BATCH"], "before 12.8": ["-DFAKE_WITHOUT_BATCH"]}
"""Drivers whose batched copies have another signature, and those without any."""


def make_rig(name: str, directory: Path) -> Rig:
    transport, _, age = name.partition(" ")
    return Rig(transport, build(directory, *AGES.get(age, [])))


@pytest.fixture(params=["shared_memory", "cuda_ipc", "cuda_vmm"])
def rig(request, tmp_path):
    with make_rig(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=[f"cuda_ipc {age}" for age in AGES])
def aged_rig(request, tmp_path):
    with make_rig(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def ipc_rig(tmp_path):
    with make_rig("cuda_ipc", tmp_path) as made:
        yield made


@pytest.fixture
def vmm_rig(tmp_path):
    with make_rig("cuda_vmm", tmp_path) as made:
        yield made
