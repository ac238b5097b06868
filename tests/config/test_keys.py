from pathlib import Path

import pytest

from nodeserve.config.keys import is_credential, key_file, read_api_keys
from nodeserve.errors import ConfigError


def test_keys_are_lines_without_comments(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# for the lab\nk1\n\n  k2  \n")
    assert read_api_keys(path) == ("k1", "k2")


def test_a_file_without_keys_is_refused(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_api_keys(path)


def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="/none: cannot be read: No such file or directory; name"):
        read_api_keys(tmp_path / "none")
    (tmp_path / "keys").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read: it is not UTF-8; name a text file"):
        read_api_keys(tmp_path / "keys")


def test_a_path_is_itself_and_a_credential_is_where_the_manager_put_it():
    environ = {"CREDENTIALS_DIRECTORY": "/run/credentials/nodeserve.service"}
    assert key_file("/etc/keys", environ) == Path("/etc/keys")
    found = Path("/run/credentials/nodeserve.service/apikeys")
    assert key_file("credential:apikeys", environ) == found
    assert [is_credential(given) for given in ("credential:a", "/etc/keys")] == [True, False]


def test_a_credential_that_was_not_given_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="LoadCredential=apikeys:FILE"):
        key_file("credential:apikeys", {})


@pytest.mark.parametrize("name", ["", "..", "../shadow", "a/b"])
def test_a_credential_is_a_name_and_no_path(name):
    with pytest.raises(ConfigError, match="write the name of a credential"):
        key_file(f"credential:{name}", {"CREDENTIALS_DIRECTORY": "/run/credentials/x"})
