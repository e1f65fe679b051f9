"""Weights of a Hugging Face directory: one safetensors file, or shards with an index.

The library maps a file only after its header has been checked here, so that a lie about sizes or offsets ends in
ModelFileError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["SafetensorsSource"]


class SafetensorsSource:
    """A `WeightSource` over a directory.

    >>> source = SafetensorsSource(directory)  # doctest: +SKIP
    >>> source.shape("model.norm.weight")  # doctest: +SKIP
    (576,)
    """

    format = "safetensors"

    def __init__(self, directory: Path | str) -> None:
        self._stored: dict[str, _Stored] = {}
        for path, names in _files(Path(directory)):
            header = _read_header(path)
            _check_index(path, names, header)
            for name, tensor in header.items():
                translated = _text_model_name(name)
                if translated in self._stored:
                    raise ModelFileError(f"{path}: tensor {name!r} is in another file too")
                self._stored[translated] = _Stored(path, name, tensor)

    def names(self) -> Sequence[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].tensor.shape

    def dtype(self, name: str) -> str:
        """As the file spells it."""
        return self._stored[name].tensor.dtype

    def load(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        if stored.tensor.dtype not in _READABLE:
            raise UnsupportedModelError(
                f"{stored.path}: tensor {name!r} has dtype {stored.tensor.dtype}; nonet reads {', '.join(_READABLE)}"
            )
        return self.load_stored(name)

    def load_stored(self, name: str) -> torch.Tensor:
        """A tensor of any type, bit for bit; for readers of layouts whose parts are no weights by themselves."""
        stored = self._stored[name]
        try:
            with safe_open(stored.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{stored.path}: {error}") from None
        return tensor

    def load_groupwise(self, name: str) -> GroupwiseTensor | None:
        return None

    def close(self) -> None:
        """Nothing is held open between calls."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    name: str  # in the file
    tensor: _Tensor


_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_READABLE = ("F32", "F16", "BF16")
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_INDEX_BYTES = 64 << 20

# Multimodal checkpoints keep their language model under a prefix; the vision part is not loaded.
_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


def _files(directory: Path) -> list[tuple[Path, set[str] | None]]:
    """Each file with the tensors that the index says it holds; None without an index."""
    if (directory / _SINGLE).is_file():
        return [(directory / _SINGLE, None)]
    index = directory / _INDEX
    if not index.is_file():
        raise ModelFileError(f"{directory}: there is no {_SINGLE} and no {_INDEX}")
    by_file: dict[str, set[str]] = {}
    for name, file in _read_weight_map(index).items():
        by_file.setdefault(file, set()).add(name)
    missing = sorted(file for file in by_file if not (directory / file).is_file())
    if missing:
        raise ModelFileError(f"{directory}: missing shards that {_INDEX} names: {_some(missing)}")
    present = {path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name)}
    extra = sorted(present - by_file.keys())
    if extra:
        raise ModelFileError(
            f"{directory}: shards that {_INDEX} does not name: {_some(extra)}; remove them or fetch the model again"
        )
    return [(directory / file, names) for file, names in sorted(by_file.items())]


def _read_weight_map(index: Path) -> dict[str, str]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise ModelFileError(f"{index}: larger than {_MAX_INDEX_BYTES} bytes")
    content = _parse_json(index.read_bytes(), index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index}: there is no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ModelFileError(
                f"{index}: tensor {name!r} is said to be in {file!r}; a .safetensors file of the same directory is "
                f"needed"
            )
    return weight_map


def _check_index(path: Path, names: set[str] | None, header: dict[str, _Tensor]) -> None:
    if names is None or names == header.keys():
        return
    absent, unnamed = sorted(names - header.keys()), sorted(header.keys() - names)
    what = f"lacks {_some(absent)}" if absent else f"holds {_some(unnamed)}, which is not listed"
    raise ModelFileError(f"{path}: does not agree with {_INDEX}: it {what}")


def _read_header(path: Path) -> dict[str, _Tensor]:
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
            content = _parse_json(file.read(length), path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    content.pop("__metadata__", None)
    header = {name: _tensor(path, name, entry) for name, entry in content.items()}
    _check_cover(path, header, size - 8 - length)
    return header


def _tensor(path: Path, name: str, entry: object) -> _Tensor:
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
    return _Tensor(dtype, tuple(shape), start, end)


def _check_cover(path: Path, header: dict[str, _Tensor], data_bytes: int) -> None:
    spans = sorted((tensor.start, tensor.end, name) for name, tensor in header.items())
    edges = [(0, 0, ""), *spans, (data_bytes, data_bytes, "")]
    for (_, end, left), (start, _, right) in pairwise(edges):
        if end != start:
            raise ModelFileError(
                f"{path}: between tensors {left!r} and {right!r} the data goes from byte {end} to {start} of "
                f"{data_bytes}; the file is truncated or corrupt"
            )


def _parse_json(raw: bytes, path: Path) -> dict[str, object]:
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


def _text_model_name(name: str) -> str:
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
