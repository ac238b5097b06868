"""API keys: the file that holds them, or the credential that the service manager hands over."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nodeserve.errors import ConfigError

CREDENTIAL: Final = "credential:"
"""What an ``api_key_file`` begins with that is no path but a name of ``LoadCredential=``."""

_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
_NAME: Final = re.compile(r"^[A-Za-z0-9_.-]{1,255}$")


def is_credential(given: str) -> bool:
    """Whether an ``api_key_file`` names a credential, which is there only in the service."""
    return given.startswith(CREDENTIAL)


def key_file(given: str, environ: Mapping[str, str]) -> Path:
    """Return the absolute path of the file that an ``api_key_file`` stands for.

    Raises:
        ConfigError: It names a credential, and this process was given none or the name is none.
    """
    if not is_credential(given):
        return Path(given).expanduser().absolute()
    name = given.removeprefix(CREDENTIAL)
    if not _NAME.match(name) or name in {".", ".."}:
        raise ConfigError(f"API keys {given!r}: write the name of a credential behind the colon")
    directory = environ.get(_DIRECTORY)
    if not directory:
        raise ConfigError(
            f"API keys {given}: this process was given no credentials; start it as a service with "
            f"LoadCredential={name}:FILE, or name a file"
        )
    return Path(directory) / name


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file, one a line; lines that are empty or begin with # do not count.

    Raises:
        ConfigError: The file cannot be read or holds no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"API key file {path}: cannot be read: {why}; name a text file with one key a line"
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"API key file {path}: holds no key; write one a line")
    return keys
