"""Handles of memory by descriptor, without any driver; tests/conformance/transfer copies bytes."""

import os
from types import SimpleNamespace

import pytest

from nodeserve.errors import DeviceError, PeerError
from nodeserve.transfer import cuda_vmm
from nodeserve.transfer.cuda_vmm import CudaVmmImporter
from nodeserve.transfer.owner import started_ticks

HERE = SimpleNamespace(fd=7, address=1 << 20, num_bytes=4096)


def test_a_handle_names_the_descriptor_and_what_is_mapped_by_it():
    assert cuda_vmm.export_memory(HERE, "GPU-ours", 1000) == {
        "transport": "cuda_vmm",
        "pid": os.getpid(),
        "started": started_ticks(os.getpid()),
        "uuid": "GPU-ours",
        "fd": 7,
        "bytes": 1000,
        "mapped_bytes": 4096,
    }


def refuse(fd, num_bytes):
    raise DeviceError("cuMemImport", function="cuMemImportFromShareableHandle", code=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mapped_bytes": 999}, "malformed"),
        ({"bytes": 0}, "malformed"),
        ({"fd": "7"}, "malformed"),
        ({"uuid": 1}, "malformed"),
        ({}, "its own GPU memory"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_words(change, words):
    importer = CudaVmmImporter("GPU-ours", refuse, None, 0, 1000)
    with pytest.raises(PeerError, match=words):
        importer.open(cuda_vmm.export_memory(HERE, "GPU-ours", 1000) | change)
