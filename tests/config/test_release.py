import pytest

from nodeserve.config import release
from nodeserve.errors import ConfigError


def test_the_pinned_release_is_the_installed_one_for_tests_on_real_engines():
    assert release.pinned_vllm_version().count(".") == 2
    assert release.nodeserve_version()[0].isdigit()


def test_the_pinned_release_is_accepted_with_or_without_a_local_part():
    release.check_vllm("0.32.0", "0.32.0")
    release.check_vllm("0.32.0+cpu", "0.32.0")


def test_another_release_is_refused_with_both_versions():
    with pytest.raises(ConfigError, match=r"0\.31\.1 is installed, this release needs 0\.32\.0"):
        release.check_vllm("0.31.1", "0.32.0")


def test_no_vllm_is_refused_with_what_to_install():
    with pytest.raises(ConfigError, match=r"is not installed.*nodeserve\[cuda\].*--simulate"):
        release.check_vllm(None, "0.32.0")
