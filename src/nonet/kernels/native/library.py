"""The compiled kernels as Python sees them: argument structures, the table of kernels, thread teams.

Every structure here mirrors one in csrc/; `Library` compares their sizes when it loads.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

from nonet.core.errors import ConfigError
from nonet.kernels.native.build import build_library

__all__ = [
    "AttentionArgs",
    "DenseWeight",
    "EmbedArgs",
    "GatedArgs",
    "GatherArgs",
    "GroupwiseWeight",
    "Library",
    "LinearArgs",
    "LoraArgs",
    "NormArgs",
    "Op",
    "RopeArgs",
    "Rows",
    "load_library",
    "native_available",
]

_pointer, _int32, _int64, _float = (
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_float,
)


class Rows(ctypes.Structure):
    """dims[kind] rows when kind is not negative, otherwise `count`."""

    _fields_ = [("kind", _int32), ("count", _int32)]


class DenseWeight(ctypes.Structure):
    _fields_ = [
        ("units", _pointer),
        ("bias", _pointer),
        ("columns", _int64),
        ("depth", _int64),
        ("steps", _int64),
    ]


class GroupwiseWeight(ctypes.Structure):
    _fields_ = [
        ("records", _pointer),
        ("bias", _pointer),
        ("columns", _int64),
        ("depth", _int64),
        ("group", _int32),
        ("bits", _int32),
        ("zero", _int32),
        ("has_minimum", _int32),
        ("is_half", _int32),
        ("record_bytes", _int32),
        ("by_token", _int32),
    ]


class LinearArgs(ctypes.Structure):
    _fields_ = [
        ("x", _pointer),
        ("out", _pointer),
        ("weight", _pointer),
        ("rows", Rows),
        ("softcap", _float),
        ("gate", _int32),
    ]


class LoraArgs(ctypes.Structure):
    _fields_ = [
        ("x", _pointer),
        ("out", _pointer),
        ("first", _pointer),
        ("second", _pointer),
        ("slots", _pointer),
        ("ranks", _pointer),
        ("rows", Rows),
        ("depth", _int32),
        ("columns", _int32),
        ("rank", _int32),
        ("parts", _int32),
        ("ends", _int32 * 4),
        ("element", _int32),
    ]


class EmbedArgs(ctypes.Structure):
    _fields_ = [
        ("token_ids", _pointer),
        ("out", _pointer),
        ("weight", _pointer),
        ("rows", Rows),
        ("scale", _float),
    ]


class NormArgs(ctypes.Structure):
    _fields_ = [
        ("x", _pointer),
        ("residual", _pointer),
        ("weight", _pointer),
        ("out", _pointer),
        ("rows", Rows),
        ("columns", _int32),
        ("eps", _float),
    ]


class GatedArgs(ctypes.Structure):
    _fields_ = [
        ("gate_up", _pointer),
        ("out", _pointer),
        ("rows", Rows),
        ("columns", _int32),
        ("gate", _int32),
    ]


class GatherArgs(ctypes.Structure):
    _fields_ = [
        ("x", _pointer),
        ("indices", _pointer),
        ("out", _pointer),
        ("rows", Rows),
        ("columns", _int32),
    ]


class RopeArgs(ctypes.Structure):
    _fields_ = [
        ("qkv", _pointer),
        ("q", _pointer),
        ("cos_sin", _pointer),
        ("q_norm", _pointer),
        ("k_norm", _pointer),
        ("keys", _pointer),
        ("values", _pointer),
        ("key_scales", _pointer),
        ("value_scales", _pointer),
        ("positions", _pointer),
        ("slots", _pointer),
        ("rows", Rows),
        ("heads", _int32),
        ("kv_heads", _int32),
        ("dim", _int32),
        ("block_size", _int32),
        ("element", _int32),
        ("storage", _int32),
        ("eps", _float),
    ]


class AttentionArgs(ctypes.Structure):
    _fields_ = [
        ("q", _pointer),
        ("out", _pointer),
        ("keys", _pointer),
        ("values", _pointer),
        ("key_scales", _pointer),
        ("value_scales", _pointer),
        ("query_start", _pointer),
        ("kv_len", _pointer),
        ("block_table", _pointer),
        ("table_stride", _int64),
        ("sequences", Rows),
        ("heads", _int32),
        ("kv_heads", _int32),
        ("dim", _int32),
        ("block_size", _int32),
        ("element", _int32),
        ("storage", _int32),
        ("window", _int32),
        ("scale", _float),
        ("softcap", _float),
    ]


class Op(ctypes.Structure):
    """One entry of a program."""

    _fields_ = [("kernel", _pointer), ("args", _pointer)]


_ARGUMENTS: dict[str, type[ctypes.Structure]] = {
    "linear_float32": LinearArgs,
    "linear_bfloat16": LinearArgs,
    "linear_int8": LinearArgs,
    "linear_groupwise_float32": LinearArgs,
    "linear_groupwise_bfloat16": LinearArgs,
    "embed_float32": EmbedArgs,
    "embed_bfloat16": EmbedArgs,
    "embed_groupwise": EmbedArgs,
    "lora": LoraArgs,
    "norm": NormArgs,
    "gated": GatedArgs,
    "gather_rows": GatherArgs,
    "rope_store": RopeArgs,
    "attention": AttentionArgs,
}


class Library:
    """One loaded library and the thread teams of this process."""

    def __init__(self, path: Path) -> None:
        try:
            self._lib = ctypes.CDLL(str(path))
        except OSError as error:
            raise ConfigError(
                f"the native kernels in {path} could not be loaded: {error}"
            ) from error
        self._declare()
        self.address_of = self._read_kernels()
        self.attention_scratch_bytes: int = self._lib.nonet_attention_scratch_bytes()
        self.product_scratch_bytes: int = self._lib.nonet_product_scratch_bytes()
        self.dense_panels: int = self._lib.nonet_dense_panels()
        self.groupwise_panels: int = self._lib.nonet_groupwise_panels()
        self._teams: dict[tuple[int, int], int] = {}

    def team(self, threads: int) -> int:
        """Handle of this process's team of `threads`; threads do not survive a fork, so the child makes its own."""
        key = (os.getpid(), threads)
        if key not in self._teams:
            handle = self._lib.nonet_team_create(threads)
            if not handle:
                raise ConfigError(f"{threads} threads could not be started; ask for fewer")
            self._teams[key] = handle
        return self._teams[key]

    def run(
        self,
        team: int,
        ops: ctypes.Array[Op] | Op,
        count: int,
        dims: ctypes.Array[ctypes.c_int32],
        scratch_bytes: int,
        shared_bytes: int,
        seconds: ctypes.Array[ctypes.c_double] | None = None,
    ) -> None:
        """Run a program to its end; other Python threads run meanwhile."""
        if self._lib.nonet_run(
            team, ctypes.byref(ops), count, dims, scratch_bytes, shared_bytes, seconds
        ):
            raise MemoryError(f"no {scratch_bytes} bytes of scratch for each kernel thread")

    def _declare(self) -> None:
        lib = self._lib
        lib.nonet_kernel.argtypes = [_int32, _pointer, _pointer]
        lib.nonet_kernel.restype = _pointer
        lib.nonet_team_create.argtypes = [ctypes.c_int]
        lib.nonet_team_create.restype = _pointer
        lib.nonet_attention_scratch_bytes.restype = _int64
        lib.nonet_product_scratch_bytes.restype = _int64
        lib.nonet_dense_panels.restype = ctypes.c_int
        lib.nonet_groupwise_panels.restype = ctypes.c_int
        lib.nonet_run.argtypes = [
            _pointer, _pointer, ctypes.c_int, _pointer, _int64, _int64, _pointer,
        ]  # fmt: skip
        lib.nonet_run.restype = ctypes.c_int

    def _read_kernels(self) -> dict[str, int]:
        name, size = ctypes.c_char_p(), ctypes.c_int64()
        found: dict[str, int] = {}
        while kernel := self._lib.nonet_kernel(len(found), ctypes.byref(name), ctypes.byref(size)):
            key = (name.value or b"").decode()
            assert size.value == ctypes.sizeof(_ARGUMENTS[key]), key
            found[key] = kernel
        assert found.keys() == _ARGUMENTS.keys()
        return found


@lru_cache(maxsize=1)
def load_library() -> Library:
    """The library for this machine, compiled if need be; ConfigError says why there is none."""
    return Library(build_library())


def native_available() -> tuple[bool, str]:
    """Whether the native kernels run here, and why or why not. Compiles them at first use."""
    try:
        load_library()
    except ConfigError as error:
        return False, str(error)
    return True, "compiled for this CPU"
