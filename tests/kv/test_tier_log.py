"""The host tier's log and its lines."""

import pytest

from nodeserve.errors import ConfigError
from nodeserve.kv.tier_log import LogHeader, LogLine, Op, header, line, parse
from tests.kv.tiers import key, keys

HEADER = header(LogHeader(100, 4096))


def short(name) -> bytes:
    return key(name)[:6]


def test_lines_say_what_was_asked_and_are_read_again() -> None:
    log = [
        HEADER,
        line(Op.LOOK_UP, "chat", keys("a", "b"), at_s=0.25),
        line(Op.STORE, "my batch", keys("c"), key("b"), at_s=1.5),
        line(Op.EVICT, "", keys("a"), at_s=2.0),
    ]
    assert list(parse(log)) == [
        LogHeader(100, 4096),
        LogLine(0.25, Op.LOOK_UP, "chat", b"", (short("a"), short("b"))),
        LogLine(1.5, Op.STORE, "my_batch", short("b"), (short("c"),)),
        LogLine(2.0, Op.EVICT, "-", b"", (short("a"),)),
    ]


def test_the_format_is_as_documented() -> None:
    assert HEADER == "nodeserve-kv-log 1 100 4096\n"
    assert line(Op.STORE, "l", bytes(range(32)), bytes(32), at_s=1.2345) == (
        "1234 S l AAAAAAAA AAECAwQF\n"
    )
    assert line(Op.LOOK_UP, "l", b"", at_s=0.0) == "0 L l - -\n"


def test_a_last_line_that_was_cut_off_is_left_out() -> None:
    assert len(list(parse([HEADER, line(Op.LOOK_UP, "l", keys("a"), at_s=0)[:-3]]))) == 1


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (["[server]\n"], "line 1 does not begin with nodeserve-kv-log"),
        (["nodeserve-kv-log 2 1 1\n"], r"version \['2'\], this program reads 1"),
        (["nodeserve-kv-log 1 x 1\n"], "has no sizes"),
        ([HEADER, "\n"], "line 2 is no line"),
        ([HEADER, "1 L l - AAAA\n"], "not a multiple of 6"),
        ([HEADER, "1 Q l - -\n"], "'Q'"),
        ([HEADER, "x L l - -\n"], "line 2 is no line"),
        ([HEADER, "1 L l - %%%%\n"], "line 2 is no line"),
    ],
)
def test_what_is_no_such_log_is_refused_with_its_line(log, text) -> None:
    with pytest.raises(ConfigError, match=text):
        list(parse(log))
