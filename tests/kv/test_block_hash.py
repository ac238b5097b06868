from nodeserve.kv.block_hash import NO_SEED, chain, hash_blocks, root_seed


def test_only_full_blocks_are_hashed():
    assert len(hash_blocks(range(35), 16)) == 2
    assert hash_blocks(range(15), 16) == ()


def test_equal_prefixes_have_equal_hashes_and_then_part():
    one = hash_blocks([*range(32), 1, 2, 3, 4], 4)
    two = hash_blocks([*range(32), 1, 2, 3, 5], 4)
    assert one[:8] == two[:8]
    assert one[8] != two[8]


def test_a_block_is_hashed_together_with_what_comes_before_it():
    one = hash_blocks([1, 1, 7, 7], 2)
    two = hash_blocks([2, 2, 7, 7], 2)
    assert one[1] != two[1]


def test_lists_and_tuples_hash_alike():
    assert hash_blocks([1, 2, 3, 4], 2) == hash_blocks((1, 2, 3, 4), 2)


def test_chaining_block_by_block_gives_the_same():
    first, second = hash_blocks([1, 2, 3, 4], 2)
    assert chain(NO_SEED, (1, 2)) == first
    assert chain(first, (3, 4)) == second


def test_adapters_and_salts_start_chains_of_their_own():
    seeds = {
        root_seed(),
        root_seed("a"),
        root_seed("b"),
        root_seed(None, "a"),
        root_seed("a", "a"),
    }
    assert len(seeds) == 5
    assert root_seed("", "") == NO_SEED
    assert hash_blocks([1, 2], 2, root_seed("a")) != hash_blocks([1, 2], 2)
