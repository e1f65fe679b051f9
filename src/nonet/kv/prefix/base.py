"""The seam: what is already computed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["PrefixIndex"]


class PrefixIndex(Protocol):
    """From the content of a block, and of all before it, to the block that holds it, in each cache group."""

    def extend(
        self, keys: list[bytes], token_ids: Sequence[int], adapter_id: str, cache_salt: str
    ) -> None:
        """Bring `keys` up to date with `token_ids`: afterwards `keys[i]` names block i, for each full block.

        `keys` is made by earlier calls with a beginning of the same tokens; only new blocks are worked on.
        """
        ...

    def match(self, group: int, key: bytes) -> int:
        """The block with this content, or the null block."""
        ...

    def insert(self, group: int, key: bytes, block_id: int) -> bool:
        """Publish a block; False, and nothing changes, when another block already holds the same."""
        ...

    def remove(self, group: int, key: bytes) -> None:
        """The block published under `key` is about to be overwritten."""
        ...

    def __len__(self) -> int: ...
