import pytest

from nodeserve.device.nvml import Nvml
from tests.support.fake_nvml_library import FakeNvml


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory):
    """One for the process: nvidia-ml-py loads a library once."""
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_nvml(nvml_library):
    """Eight GPUs that are idle and well, at a time that stands still."""
    nvml_library.begin_anew(now_s=0.0)
    return nvml_library


@pytest.fixture
def nvml(fake_nvml):
    opened = Nvml(str(fake_nvml.library))
    yield opened
    opened.close()
