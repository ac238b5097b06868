"""One release of nodeserve runs with one release of vLLM, exactly. Does not import vLLM."""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from nodeserve.errors import ConfigError


def require_pinned(installed: str, pinned: str) -> None:
    """Refuse any vLLM but the one that this nodeserve was built and tested with.

    Raises:
        ConfigError: Naming both versions.
    """
    if installed != pinned:
        text = (
            f"vLLM {installed} is installed, this nodeserve needs exactly {pinned}: the wire to "
            f"the engine changes between releases; install vllm=={pinned}"
        )
        raise ConfigError(text)


def pinned_release() -> str:
    """Return the vLLM release that nodeserve's ``cuda`` extra names.

    It is read from the installed distribution, or beside a checkout that is not installed.

    Raises:
        ConfigError: nodeserve is neither installed nor run from a checkout.
    """
    try:
        return pin_of(importlib.metadata.requires("nodeserve") or ())
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[3] / "pyproject.toml"
        try:
            extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
        except OSError as error:
            text = f"nodeserve is not installed and {project} is not there: run pip install"
            raise ConfigError(text) from error
        return pin_of(f'{line}; extra == "cuda"' for line in extras["cuda"])


def pin_of(requirements: Iterable[str]) -> str:
    """Return the version that the requirement ``vllm==...`` of the extra ``cuda`` names.

    Raises:
        ConfigError: There is no such requirement.
    """
    for line in requirements:
        requirement = Requirement(line)
        of_cuda = requirement.marker is None or requirement.marker.evaluate({"extra": "cuda"})
        if requirement.name == "vllm" and of_cuda:
            return str(requirement.specifier).removeprefix("==")
    raise ConfigError("nodeserve's extra cuda pins no vllm==<version>: reinstall nodeserve")
