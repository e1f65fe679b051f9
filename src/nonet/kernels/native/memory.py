"""Memory of the native kernels: huge pages for what is streamed, and reuse of a recording's intermediates."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref

import numpy as np
import torch

__all__ = ["Arena", "HugePages"]

_HUGE = 2 << 20
_SLAB = 64 << 20


class HugePages:
    """Hands out zeroed memory from large mappings that the kernel may back with 2 MiB pages.

    Weights are streamed once per step; with 4 KiB pages the address translation alone slows that. Pieces are never
    returned one by one: a mapping goes when the last tensor in it does.
    """

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A zeroed tensor, 64-byte aligned."""
        num_bytes = math.prod(shape) * dtype.itemsize
        padded = -(-num_bytes // 64) * 64
        if padded > self._slab.numel() - self._used:
            self._slab = _map(max(_SLAB, padded))
            self._used = 0
        piece = self._slab[self._used : self._used + num_bytes]
        self._used += padded
        return piece.view(dtype).view(shape)


class Arena:
    """Memory for the intermediates of a recording, reused as soon as the last tensor on a piece is gone.

    Liveness is Python's: a piece is a numpy array that a torch storage holds on to, so views keep it too.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._pieces: list[np.ndarray] = []
        self._kinds: dict[int, int] = {}  # address of a live piece -> what counts its rows

    def empty(self, rows: int, columns: int, kind: int) -> torch.Tensor:
        """float32 [rows, columns] whose live rows are counted by `kind`."""
        size = max(rows * columns, 1)
        fitting = [piece for piece in self._free if size <= piece.size <= 4 * size]
        if fitting:
            piece = min(fitting, key=len)
            self._free = [other for other in self._free if other is not piece]
        else:
            piece = np.empty(-(-size // 16) * 16 + 16, dtype=np.float32)
            self._pieces.append(piece)
        view = piece[:size]
        address = piece.ctypes.data
        self._kinds[address] = kind
        weakref.finalize(view, self._release, piece, address).atexit = False
        return torch.from_numpy(view)[: rows * columns].view(rows, columns)

    def kind_of(self, tensor: torch.Tensor, default: int) -> int:
        """What counts the rows of a live intermediate; `default` for a tensor from elsewhere."""
        return self._kinds.get(tensor.untyped_storage().data_ptr(), default)

    @property
    def num_bytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    def _release(self, piece: np.ndarray, address: int) -> None:
        self._kinds.pop(address, None)
        self._free.append(piece)


def _map(num_bytes: int) -> torch.Tensor:
    mapping = mmap.mmap(-1, num_bytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % _HUGE
    return torch.frombuffer(mapping, dtype=torch.uint8, count=num_bytes, offset=start)
