"""Find a model's directory and read what its config.json says."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.config.facts import ModelFacts
from nodeserve.errors import ConfigError

_HUB_NAME: Final = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def find_model(given: str, environ: Mapping[str, str]) -> ModelFacts:
    """Return the facts of a model directory, or of a name in the local Hugging Face cache.

    Nothing is downloaded: workers would each do it, and the node would start in minutes.

    Raises:
        ConfigError: There is no such directory, or it or its config.json cannot be read.
    """
    path = Path(given).expanduser()
    if not path.exists() and _HUB_NAME.match(given):
        path = _in_hub_cache(given, environ)
    if not path.exists():
        raise ConfigError(f"model {given}: no such directory; give the path of a model directory")
    if not path.is_dir():
        raise ConfigError(f"model {given}: is a file; give the directory that holds config.json")
    config = path / "config.json"
    try:
        read = json.loads(config.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"model {given}: holds no config.json; give a model directory in Hugging Face format"
        ) from None
    except PermissionError:
        who = f"uid {os.getuid()}"
        raise ConfigError(
            f"model {given}: {who} may not read {config}; change its permissions"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {given}: {config} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"model {given}: {config} holds no JSON object")
    return _facts(given, path, read)


def _facts(given: str, path: Path, config: dict[str, object]) -> ModelFacts:
    named = config.get("architectures")
    architectures = (
        [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    )
    keys = [key for key, value in config.items() if value not in (None, False)]
    return ModelFacts(
        path=str(path.absolute()),
        given=given,
        architectures=tuple(architectures),
        keys=tuple(keys),
    )


def _in_hub_cache(name: str, environ: Mapping[str, str]) -> Path:
    """Return the snapshot that the hub's own client would load; paths as huggingface_hub's."""
    home = Path(environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    hub = Path(environ.get("HF_HUB_CACHE") or home / "hub")
    repository = hub / ("models--" + name.replace("/", "--"))
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(
            f"model {name}: no such directory, and not in the Hugging Face cache {hub}; "
            f"run `hf download {name}` first, or give a path"
        ) from None
    return repository / "snapshots" / revision


def default_names(model: ModelFacts) -> tuple[str, ...]:
    """Return what clients may call a model when nothing is set: its short name comes first.

    A directory goes by its own name, a model of the hub by the name on the hub; the model as
    it was given is accepted too.
    """
    given = model.given.rstrip("/")
    if _HUB_NAME.match(model.given) and "/snapshots/" in model.path:
        return (model.given,)
    short = Path(model.path).name or given
    return (short,) if short == given else (short, given)
