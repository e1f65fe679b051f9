"""Chained block hashes.

Idea: the name of a block is the SHA-256 of its parent's name and its own token ids, so that equal names mean equal
tokens from the very first one. The chain starts with a hash of what else the KV depends on or must be kept apart by:
the format of the cache, the adapter, the tenant's salt. A lookup is one dictionary access for each block.
Reference: arXiv 2309.06180, section 4.4; the chain of hashes as in Merkle's and Damgård's constructions.
Cost: one hash of 32 + 4 * block_size bytes for each full block of a sequence, once.
Good for: any workload with shared beginnings; sharing is in whole blocks.
Conflicts: none. Lossy caches must use another format tag, or not publish.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256

from nonet.kv.block import NULL_BLOCK

__all__ = ["HashedPrefixIndex"]


class HashedPrefixIndex:
    """One dictionary from block hash to block for each cache group.

    >>> index = HashedPrefixIndex(num_groups=1, block_size=2)
    >>> keys = []
    >>> index.extend(keys, [5, 6, 7, 8, 9], adapter_id="", cache_salt="")
    >>> len(keys), index.insert(0, keys[1], block_id=3), index.match(0, keys[1]), index.match(0, keys[0])
    (2, True, 3, 0)
    """

    def __init__(self, num_groups: int, block_size: int, format_tag: str = "") -> None:
        self._block_size = block_size
        self._format = format_tag
        # Little endian, so that a hash means the same on every machine.
        self._pack_tokens = struct.Struct(f"<{block_size}I").pack
        self._blocks: list[dict[bytes, int]] = [{} for _ in range(num_groups)]

    def extend(
        self, keys: list[bytes], token_ids: Sequence[int], adapter_id: str, cache_salt: str
    ) -> None:
        size, pack = self._block_size, self._pack_tokens
        start, stop = len(keys) * size, len(token_ids) // size * size
        if start >= stop:
            return
        parent = keys[-1] if keys else self._root(adapter_id, cache_salt)
        for at in range(start, stop, size):
            parent = sha256(parent + pack(*token_ids[at : at + size])).digest()
            keys.append(parent)

    def match(self, group: int, key: bytes) -> int:
        return self._blocks[group].get(key, NULL_BLOCK)

    def insert(self, group: int, key: bytes, block_id: int) -> bool:
        return self._blocks[group].setdefault(key, block_id) == block_id

    def remove(self, group: int, key: bytes) -> None:
        del self._blocks[group][key]

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def _root(self, adapter_id: str, cache_salt: str) -> bytes:
        """Start of a chain. Each field is preceded by its length, so no two sets of fields encode alike."""
        encoded = bytearray(b"nonet prefix 1")
        for field in (self._format, str(self._block_size), adapter_id, cache_salt):
            data = field.encode("utf-8", "surrogatepass")
            encoded += struct.pack("<Q", len(data)) + data
        return sha256(encoded).digest()
