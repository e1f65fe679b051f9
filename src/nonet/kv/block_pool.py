"""All blocks of the cache: which are live, which are idle and can be found again, which are blank."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nonet.kv.block import NULL_BLOCK, Block
from nonet.kv.evict.base import Evictor
from nonet.kv.evict.leases import Leases
from nonet.kv.prefix.base import PrefixIndex

__all__ = ["BlockPool"]


class BlockPool:
    """Gives out blocks 1 to `num_blocks`, counts the references to each, and takes them back.

    Blank blocks are given out first; when there are none, the evictor names an idle one and the prefix index forgets
    it. Idle blocks under a lease are not given out.

    >>> from nonet.kv.evict.lru import LruEvictor
    >>> from nonet.kv.prefix.hashed import HashedPrefixIndex
    >>> pool = BlockPool(4, LruEvictor(), HashedPrefixIndex(num_groups=1, block_size=16))
    >>> pool.allocate(3)
    [1, 2, 3]
    >>> pool.free([2]); pool.num_free
    2
    """

    def __init__(
        self, num_blocks: int, evictor: Evictor, index: PrefixIndex, max_leased: int = 0
    ) -> None:
        self.num_blocks = num_blocks
        self.blocks = [Block(block_id) for block_id in range(num_blocks + 1)]
        self._blank = list(range(num_blocks, NULL_BLOCK, -1))  # the last one is given out next
        self._evictor = evictor
        self._index = index
        self.leases = Leases(max_leased)

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give out: blank ones, and idle ones without a lease."""
        return len(self._blank) + len(self._evictor)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; the caller has checked `num_free`."""
        taken = []
        for _ in range(count):
            block_id = self._blank.pop() if self._blank else self._evict()
            self.blocks[block_id].num_refs = 1
            taken.append(block_id)
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference to each block; null blocks are passed over."""
        for block_id in block_ids:
            if block_id == NULL_BLOCK:
                continue
            block = self.blocks[block_id]
            if block_id in self.leases:
                self.leases.on_use(block_id)
            elif block.num_refs == 0:
                self._evictor.on_use(block_id)
            block.num_refs += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """One reference less to each block, in this order; null blocks are passed over."""
        for block_id in block_ids:
            if block_id == NULL_BLOCK:
                continue
            block = self.blocks[block_id]
            assert block.num_refs > 0, f"block {block_id} is freed twice"
            block.num_refs -= 1
            if block.num_refs == 0:
                if block.key is None:
                    self._blank.append(block_id)
                elif block_id in self.leases:
                    self.leases.on_free(block_id)
                else:
                    self._evictor.on_free(block_id)

    def publish(self, block_id: int, group: int, key: bytes) -> bool:
        """Make a live block's content findable; False when it was published before or another block holds the same."""
        block = self.blocks[block_id]
        if block.key is not None or not self._index.insert(group, key, block_id):
            return False
        block.key, block.group = key, group
        return True

    def end_leases(self, now: float) -> None:
        """Time is `now`; idle blocks whose lease has run out may be given out again."""
        for block_id in self.leases.end(now):
            self._evictor.on_free(block_id)

    def lease(self, block_ids: Collection[int], ttl_s: float) -> bool:
        """Keep these published blocks for `ttl_s` after their last use; False when too many are kept already."""
        if not self.leases.grant(block_ids, ttl_s):
            return False
        for block_id in block_ids:
            if block_id in self._evictor:
                self._evictor.on_use(block_id)
                self.leases.on_free(block_id)
        return True

    def withdraw(self, block_id: int) -> None:
        """Make a block's content unfindable: it is about to be overwritten."""
        block = self.blocks[block_id]
        if block.key is not None:
            self._index.remove(block.group, block.key)
            block.key = None

    def count_idle(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks are idle and count as free."""
        return sum(1 for block_id in block_ids if block_id in self._evictor)

    def check_integrity(self, references: dict[int, int]) -> list[str]:
        """What is wrong, given the references that the tables hold to each block; empty when all is well."""
        problems = []
        blank = set(self._blank)
        if len(blank) != len(self._blank):
            problems.append("a blank block is listed twice")
        null = self.blocks[NULL_BLOCK]
        if null.num_refs or null.key is not None or NULL_BLOCK in blank:
            problems.append("the null block is in use")
        num_published = 0
        for block in self.blocks[1:]:
            expected = references.get(block.block_id, 0)
            if block.num_refs != expected:
                problems.append(
                    f"block {block.block_id} counts {block.num_refs} references, tables hold {expected}"
                )
            if (block.block_id in blank) != block.is_blank:
                problems.append(f"block {block.block_id} is in the wrong list: blank")
            is_idle = block.num_refs == 0 and block.key is not None
            is_leased = block.block_id in self.leases
            if is_leased and block.key is None:
                problems.append(f"block {block.block_id} is leased, but holds nothing")
            if self.leases.is_idle(block.block_id) != (is_idle and is_leased):
                problems.append(f"block {block.block_id} is in the wrong list: leased")
            if (block.block_id in self._evictor) != (is_idle and not is_leased):
                problems.append(f"block {block.block_id} is in the wrong list: idle")
            if block.key is not None:
                num_published += 1
                if self._index.match(block.group, block.key) != block.block_id:
                    problems.append(f"block {block.block_id} is published but found under no name")
        if num_published != len(self._index):
            problems.append(
                f"the prefix index names {len(self._index)} blocks, {num_published} are published"
            )
        num_live = sum(1 for block in self.blocks if block.num_refs)
        if num_live + self.num_free + self.leases.num_idle != self.num_blocks:
            problems.append(f"{num_live} live and {self.num_free} free blocks of {self.num_blocks}")
        return problems

    def _evict(self) -> int:
        block_id = self._evictor.choose()
        assert self.blocks[block_id].key is not None
        self.withdraw(block_id)
        return block_id
