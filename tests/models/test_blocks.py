"""Blocks of the cache: users, what is found again, what is given up first."""

from __future__ import annotations

import random

from seekray.models.blocks import BlockPool, block_names


def test_blocks_are_found_again_until_their_room_is_needed() -> None:
    pool = BlockPool(4)
    table = pool.take(3)
    assert table is not None
    assert (pool.used, pool.free, pool.take(2)) == (3, 1, None)
    for block, name in zip(table, (b"a", b"b"), strict=False):
        pool.name(block, name)
    assert pool.find([b"a", b"b", b"c"]) == table[:2]  # a second user
    pool.release(table)
    assert (pool.used, pool.kept) == (2, 0)
    pool.release(table[:2])
    assert (pool.used, pool.free, pool.kept) == (0, 4, 2)
    assert len(pool.take(3) or []) == 3  # two blank ones, and the end of the two that are kept
    assert pool.find([b"a", b"b"]) == table[:1]
    assert pool.find([b"b"]) == []


def test_the_longest_unused_goes_first() -> None:
    pool = BlockPool(3)
    for name in (b"a", b"b", b"c"):
        (block,) = pool.take(1) or []
        pool.name(block, name)
        pool.release([block])
    pool.release(pool.find([b"a"]))  # used again
    pool.take(2)
    assert [len(pool.find([name])) for name in (b"a", b"b", b"c")] == [1, 0, 0]


def test_names_are_of_all_that_is_before() -> None:
    first, second = block_names([1, 2, 3, 4, 5], 2, []), block_names([9, 2, 3, 4], 2, [])
    assert len(first) == 2
    assert not set(first) & set(second)
    assert block_names([1, 2, 3, 4, 5, 6], 2, first[:1]) == [*first, block_names([1, 2, 3, 4, 5, 6], 2, [])[2]]


def test_nothing_is_lost_and_nothing_is_shared_by_accident() -> None:
    """Random users against a plain account of who holds what."""
    given, pool = random.Random(0), BlockPool(20)
    held: list[list[int]] = []
    content: dict[int, bytes] = {}
    for turn in range(3000):
        if held and given.random() < 0.45:
            pool.release(held.pop(given.randrange(len(held))))
        else:
            names = [b"%d" % given.randrange(12) for _ in range(given.randint(1, 4))]
            found = pool.find(names)
            assert [content[b] for b in found] == names[: len(found)]
            fresh = pool.take(len(names) - len(found))
            if fresh is None:
                pool.release(found)
                continue
            assert not {b for table in held for b in table} & set(fresh)
            for block, name in zip(fresh, names[len(found) :], strict=True):
                content[block] = name if given.random() < 0.8 else b"-%d" % turn
                pool.name(block, content[block])
            held.append(found + fresh)
        assert pool.used == len({b for table in held for b in table})
        assert pool.used + pool.free == pool.count
