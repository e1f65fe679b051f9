"""One safetensors file: its header, checked before the library maps the file, and its tensors.

A lie about sizes or offsets ends in ModelFileError.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nonet.core.errors import ModelFileError

__all__ = ["READABLE", "StoredTensor", "load_tensor", "parse_json", "read_header"]

READABLE = ("F32", "F16", "BF16")  # dtypes of weights that nonet computes with

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One entry of the header; `start` and `end` are bytes behind it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file; dtype, shape and bytes agree, and the data is covered once and whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelFileError(
                    f"{path}: the header is said to have {length} bytes, the file has {size}; "
                    f"it is truncated or corrupt"
                )
            content = parse_json(file.read(length), path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    content.pop("__metadata__", None)
    header = {name: _tensor(path, name, entry) for name, entry in content.items()}
    _check_cover(path, header, size - 8 - length)
    return header


def load_tensor(path: Path, name: str) -> torch.Tensor:
    """A tensor of any type, bit for bit. The header must have been read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: {error}") from None
    return tensor


def parse_json(raw: bytes, path: Path) -> dict[str, object]:
    """A JSON object without repeated names."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a name occurs twice")
        return table

    try:
        content = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not the JSON it should hold: {error}") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: a JSON object is needed")
    return content


def _tensor(path: Path, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise ModelFileError(f"{path}: tensor {name!r} lacks a dtype, a shape or data_offsets")
    if dtype not in _DTYPE_BITS:
        raise ModelFileError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ModelFileError(f"{path}: tensor {name!r} has the shape {shape!r}")
    if not 0 <= start <= end or (end - start) * 8 != prod(shape) * _DTYPE_BITS[dtype]:
        raise ModelFileError(
            f"{path}: tensor {name!r} of {dtype} {shape!r} is said to lie at bytes {start} to {end}"
        )
    return StoredTensor(dtype, tuple(shape), start, end)


def _check_cover(path: Path, header: dict[str, StoredTensor], data_bytes: int) -> None:
    spans = sorted((tensor.start, tensor.end, name) for name, tensor in header.items())
    edges = [(0, 0, ""), *spans, (data_bytes, data_bytes, "")]
    for (_, end, left), (start, _, right) in pairwise(edges):
        if end != start:
            raise ModelFileError(
                f"{path}: between tensors {left!r} and {right!r} the data goes from byte {end} to {start} of "
                f"{data_bytes}; the file is truncated or corrupt"
            )
