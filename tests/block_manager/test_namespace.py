"""KV is kept under what the weights really hold."""

import os
import struct

import pytest

from nodeserve.block_manager import namespace
from nodeserve.block_manager.namespace import Cancelled, WeightsDigests, namespace_of
from nodeserve.errors import ConfigError


def safetensors(fill: int) -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}'
    return struct.pack("<Q", len(header)) + header + bytes([fill]) * 4096


def write_model(directory, *, fill=1):
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(safetensors(fill))
    (directory / "config.json").write_text('{"hidden_size": 8}')
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture
def digests(tmp_path):
    return WeightsDigests(tmp_path / "digests")


def test_equal_headers_with_other_weights_differ(tmp_path, digests) -> None:
    one, other = write_model(tmp_path / "a", fill=1), write_model(tmp_path / "b", fill=2)
    assert digests.digest(str(one)) != digests.digest(str(other))


def test_the_same_content_elsewhere_is_the_same(tmp_path, digests) -> None:
    one, other = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    assert digests.digest(str(one)) == digests.digest(str(other))
    assert len(digests.digest(str(one))) == 32


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "sub/adapter.bin"])
def test_every_file_counts(tmp_path, digests, name) -> None:
    model = write_model(tmp_path / "a")
    before = digests.digest(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("other")
    assert digests.digest(str(model)) != before


def test_what_only_people_read_does_not_count(tmp_path, digests) -> None:
    model = write_model(tmp_path / "a")
    before = digests.digest(str(model))
    (model / "README.md").write_text("hello")
    (model / ".git").mkdir()
    (model / ".git" / "index").write_text("x")
    assert digests.digest(str(model)) == before


def test_a_file_that_has_not_changed_is_not_read_again_by_whoever_comes_later(tmp_path) -> None:
    model = write_model(tmp_path / "a")
    first = WeightsDigests(tmp_path / "digests")
    found = first.digest(str(model))
    assert first.num_bytes_read > 4096
    second = WeightsDigests(tmp_path / "digests")
    assert second.digest(str(model)) == found
    assert second.num_bytes_read == 0


def test_new_weights_under_the_old_name_and_size_are_read(tmp_path, digests) -> None:
    model = write_model(tmp_path / "a", fill=1)
    before = digests.digest(str(model))
    (model / "model.safetensors").write_bytes(safetensors(2))
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert digests.digest(str(model)) != before


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x80\x80", b"\xa3abc"])
def test_a_memory_that_cannot_be_read_costs_a_read(tmp_path, damage) -> None:
    (tmp_path / "digests").write_bytes(damage)
    model = write_model(tmp_path / "a")
    assert len(WeightsDigests(tmp_path / "digests").digest(str(model))) == 32


def test_a_memory_that_cannot_be_written_costs_a_read(tmp_path) -> None:
    model = write_model(tmp_path / "a")
    digests = WeightsDigests(tmp_path / "missing" / "digests")
    assert digests.digest(str(model)) == digests.digest(str(model))


def test_pieces_of_a_large_file_are_digested_in_their_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(namespace, "_PIECE_BYTES", 1000)
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * 1000 + b"y" * 1000 + b"z")
    second.write_bytes(b"y" * 1000 + b"x" * 1000 + b"z")
    digests = WeightsDigests(tmp_path / "digests", num_threads=3)
    assert digests.digest(str(first)) != digests.digest(str(second))


@pytest.mark.parametrize(("name", "text"), [("missing", "no files"), ("empty", "no files")])
def test_a_model_without_files_is_refused(tmp_path, digests, name, text) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=text):
        digests.digest(str(tmp_path / name))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, digests, monkeypatch) -> None:
    model = write_model(tmp_path / "a")
    piece = WeightsDigests._piece

    def while_written(self, fd, start):
        os.utime(fd, ns=(start, 7))
        return piece(self, fd, start)

    monkeypatch.setattr(WeightsDigests, "_piece", while_written)
    with pytest.raises(ConfigError, match="changed while it was read"):
        digests.digest(str(model))


def test_a_digest_that_is_needed_no_more_ends(tmp_path, digests) -> None:
    digests.cancel()
    with pytest.raises(Cancelled):
        digests.digest(str(write_model(tmp_path / "a")))


def test_another_format_of_the_same_weights_is_another_namespace() -> None:
    weights = bytes(32)
    assert namespace_of(weights, b"bf16") != namespace_of(weights, b"fp8")
    assert len(namespace_of(weights, b"bf16")) == 32
