"""Weights of a Hugging Face directory: one safetensors file, or shards with an index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.weights.safetensors_file import (
    READABLE,
    StoredTensor,
    load_tensor,
    parse_json,
    read_header,
)

__all__ = ["SafetensorsSource", "text_model_name"]


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
            header = read_header(path)
            _check_index(path, names, header)
            for name, tensor in header.items():
                translated = text_model_name(name)
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
        if stored.tensor.dtype not in READABLE:
            raise UnsupportedModelError(
                f"{stored.path}: tensor {name!r} has dtype {stored.tensor.dtype}; nonet reads {', '.join(READABLE)}"
            )
        return self.load_stored(name)

    def load_stored(self, name: str) -> torch.Tensor:
        """A tensor of any type, bit for bit; for readers of layouts whose parts are no weights by themselves."""
        stored = self._stored[name]
        return load_tensor(stored.path, stored.name)

    def load_codes(self, name: str) -> GroupwiseTensor | None:
        return None

    def close(self) -> None:
        """Nothing is held open between calls."""


def text_model_name(name: str) -> str:
    """A tensor's name without the prefix under which a multimodal checkpoint keeps its language model."""
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    name: str  # in the file
    tensor: StoredTensor


_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
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
    content = parse_json(index.read_bytes(), index)
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


def _check_index(path: Path, names: set[str] | None, header: dict[str, StoredTensor]) -> None:
    if names is None or names == header.keys():
        return
    absent, unnamed = sorted(names - header.keys()), sorted(header.keys() - names)
    what = f"lacks {_some(absent)}" if absent else f"holds {_some(unnamed)}, which is not listed"
    raise ModelFileError(f"{path}: does not agree with {_INDEX}: it {what}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
