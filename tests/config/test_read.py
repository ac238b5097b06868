import enum

import msgspec
import pytest

from nodeserve.config.problems import Problems
from nodeserve.config.read import read_struct


class Kind(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind | None = None
    numbers: tuple[int | str, ...] = ()


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    ratio: float = 1.0
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    needs: Needs | None = None
    names: str | tuple[str, ...] | None = None


def read(data):
    problems = Problems("f.toml")
    return read_struct(Outer, data, "", problems), problems.errors


def test_good_data_is_read():
    data = {"ratio": 2, "inner": {"kind": "red"}, "rows": [{"numbers": [1, "a"]}], "names": ["x"]}
    assert read(data) == (
        Outer(ratio=2.0, inner=Inner(kind=Kind.RED), rows=(Inner(numbers=(1, "a")),), names=("x",)),
        [],
    )


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"ratoi": 1}, "ratoi is not a setting (did you mean `ratio`?)"),
        (
            {"zzz": 1},
            "zzz is not a setting; known here: `ratio`, `inner`, `rows`, `needs`, `names`",
        ),
        ({"inner": {"kin": 1}}, "inner.kin is not a setting (did you mean `kind`?)"),
        ({"ratio": "x"}, "ratio is 'x': expected a number, got a string"),
        ({"inner": 3}, "inner is 3: expected a table, got an integer"),
        ({"inner": {"kind": "green"}}, "inner.kind is 'green': expected red or blue"),
        ({"rows": [{}, {"kind": 1}]}, "rows[1].kind is 1: expected a string, got an integer"),
        (
            {"rows": [{"numbers": [1, 2.5]}]},
            "rows[0].numbers[1] is 2.5: expected an integer or a string, got a number",
        ),
        ({"rows": {}}, "rows is {}: expected a list, got a table"),
        ({"rows": [1]}, "rows[0] is 1: expected a table, got an integer"),
        ({"needs": {}}, "needs.name is missing"),
        (
            {"needs": {"name": 1}},
            "needs.name is 1: expected a string, got an integer: put it in quotes",
        ),
    ],
)
def test_each_problem_has_its_path(data, error):
    assert read(data)[1] == [f"f.toml: {error}"]


def test_reading_goes_on_after_a_problem():
    outer, errors = read({"ratio": "x", "rows": [{"kind": "green", "numbers": [1]}], "b": 1})
    assert outer == Outer(rows=(Inner(numbers=(1,)),))
    assert len(errors) == 3


def test_long_values_are_cut():
    assert len(read({"ratio": "x" * 1000})[1][0]) < 150
