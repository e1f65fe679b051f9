"""One block: the unit in which KV memory is given out, shared and taken back."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NULL_BLOCK", "Block"]

NULL_BLOCK = 0  # never given out; table entries without a block, and writes of padding, point to it


@dataclass(slots=True, eq=False)
class Block:
    """State of one block; changed by the pool and by nobody else.

    A block is *live* while tables refer to it, *idle* when none does but its content can still be found (`key` is set),
    and otherwise *blank*. `key` and `group` say under what name the prefix index holds it.

    >>> Block(3).is_blank
    True
    """

    block_id: int
    num_refs: int = 0
    key: bytes | None = None
    group: int = 0

    @property
    def is_blank(self) -> bool:
        return self.num_refs == 0 and self.key is None
