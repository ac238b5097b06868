"""Digests and seals: any change of a value changes them."""

from nodeserve.ledger.schema import GENESIS, SEALED, WINDOW_COLUMNS, digest_of, seal_of


def test_a_digest_is_over_all_that_a_window_says_and_all_before_it():
    window = (1, 7, 1, 0, 1000, 1000, 472222, 500, 400, 100, 0, None, 0, 1)
    assert len(window) == len(WINDOW_COLUMNS)
    digest = digest_of(GENESIS, window)
    assert digest == digest_of(GENESIS, window)
    assert digest != digest_of(digest, window)
    for place in range(len(window)):
        changed = (*window[:place], "#reset", *window[place + 1 :])
        assert digest_of(GENESIS, changed) != digest


def test_a_seal_is_over_all_values_in_order():
    assert seal_of(1, 2, 3) == seal_of(1, 2, 3)
    assert len({seal_of(1, 2, 3), seal_of(1, 3, 2), seal_of(1, 2), seal_of(1, 2, 3, 0)}) == 4
    assert seal_of("a", 1, b"x") != seal_of("b", 1, b"x")
    assert seal_of(2**70) != seal_of(2**71)


def test_every_table_of_sums_is_sealed(books):
    tables = {name for (name,) in books.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    sealed = {
        name
        for name in tables
        if any(row[1] == "seal" for row in books.rows(f"PRAGMA table_info({name})"))
    }
    assert sealed == set(SEALED)
    for table, columns in SEALED.items():
        in_table = [row[1] for row in books.rows(f"PRAGMA table_info({table})")]
        assert in_table == [*columns, "seal"]
