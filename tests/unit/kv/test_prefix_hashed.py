"""Equal names mean equal tokens, adapter and salt; anything else means another name."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.kv.prefix.hashed import HashedPrefixIndex


def keys_of(
    token_ids: list[int],
    adapter_id: str = "",
    cache_salt: str = "",
    *,
    size: int = 4,
    tag: str = "",
) -> list[bytes]:
    keys: list[bytes] = []
    HashedPrefixIndex(1, size, tag).extend(keys, token_ids, adapter_id, cache_salt)
    return keys


def test_only_full_blocks_are_named() -> None:
    assert [len(keys_of(list(range(n)))) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_names_are_fixed() -> None:
    """Changing the encoding changes every name: do it knowingly, and change the version in it."""
    (name,) = keys_of([1, 2, 3, 2**32 - 1], "adapter", "salt")
    assert name.hex() == "71ee78bd75f82d3fcea8f3535440480732ae52293262448d8e0c0111bdb2a575"


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.lists(st.integers(1, 9), max_size=9))
def test_step_by_step_equals_at_once(token_ids: list[int], steps: list[int]) -> None:
    index, keys = HashedPrefixIndex(1, 4), list[bytes]()
    at = 0
    for step in (*steps, len(token_ids)):
        at = min(at + step, len(token_ids))
        index.extend(keys, token_ids[:at], "a", "s")
    assert keys == keys_of(token_ids, "a", "s")


def test_a_name_depends_on_every_token_before() -> None:
    left, right = keys_of([1, 2, 3, 4, 5, 6, 7, 8]), keys_of([9, 2, 3, 4, 5, 6, 7, 8])
    assert left[1] != right[1]
    assert keys_of([5, 6, 7, 8])[0] not in left


@settings(max_examples=300)
@given(*[st.text(max_size=4)] * 6)
def test_fields_never_run_together(a: str, b: str, c: str, d: str, tag: str, other: str) -> None:
    tokens = [1, 2, 3, 4]
    same = (a, b, tag) == (c, d, other)
    assert (keys_of(tokens, a, b, tag=tag) == keys_of(tokens, c, d, tag=other)) == same


def test_border_between_adapter_and_salt() -> None:
    """A name built by gluing the fields, the mutant, would hold these for equal."""
    tokens = [1, 2, 3, 4]
    pairs = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("a\0b", "c"), ("a", "b\0c")]
    assert len({keys_of(tokens, *pair)[0] for pair in pairs}) == len(pairs)
    assert len({"".join(pair) for pair in pairs[:4]}) == 1


def test_block_size_is_part_of_the_name() -> None:
    assert keys_of([0] * 8, size=8)[0] not in keys_of([0] * 8, size=4)


def test_a_lone_surrogate_in_the_salt_is_no_error() -> None:
    assert keys_of([1, 2, 3, 4], "", "\ud800") != keys_of([1, 2, 3, 4])


def test_hashing_is_cheap() -> None:
    """Ten times the goal of 3 microseconds a block, in CPU time, so that a busy machine does not fail it."""
    token_ids = list(range(16 * 2000))
    index = HashedPrefixIndex(1, 16)
    best = min(_seconds(index, token_ids) for _ in range(3))
    assert best / 2000 < 30e-6


def _seconds(index: HashedPrefixIndex, token_ids: list[int]) -> float:
    began = time.process_time()
    index.extend([], token_ids, "", "")
    return time.process_time() - began
