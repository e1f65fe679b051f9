"""compressed-tensors: one container for packed integers, plain integers and 8-bit floats.

Idea: config.json groups the modules by scheme; which of the three a module is stored in shows in its tensors.
Reference: the compressed-tensors library. pack-quantized: weight_packed int32 [N, ceil(K*b/32)] along the inputs, low
bits first, codes plus 2**(b-1); weight_zero_point packed along the outputs; weight_shape; weight_g_idx for act-order.
int-quantized: weight int8. float-quantized: weight float8_e4m3fn. All: weight_scale [N, G], [N, 1] or [1].
Cost: with weight format native integers and 8-bit floats stay as they are. Static scales of activations are not used:
inputs get a scale for each token beside 8-bit floats, and none beside integers. Good for: checkpoints as published.
Conflicts: sparse, 4-bit float and rotated formats are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.quant.checkpoints.affine import (
    AffineWeight,
    check_bits,
    expect,
    regular_group,
    unpack_words,
)
from nonet.quant.checkpoints.base import (
    FLOATS,
    WORDS,
    StoredTensors,
    StoredWeight,
    load_checked,
    matrix_shape,
    modules_with,
)
from nonet.quant.checkpoints.patterns import matches
from nonet.quant.checkpoints.scaled import ScaledWeight, block_size

__all__ = ["CompressedTensors"]

FORMATS = ("dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
INTEGERS = ("I8", "I32", "I64")
STRATEGIES = ("tensor", "channel", "group", "block")
Storage = Literal["packed", "int8", "float8"]
STORAGE_OF_DTYPE: dict[str, Storage] = {"I8": "int8", "F8_E4M3": "float8"}


class CompressedTensors:
    """A `CheckpointFormat`."""

    def __init__(self, tensors: StoredTensors, config: Fields) -> None:
        self._where = config.where
        self._tensors = tensors
        self._known = frozenset(tensors.names())
        self._schemes = _schemes(config)
        self._ignore = config.items("ignore")
        self._storage: dict[str, Storage] = {}
        for module in modules_with(tensors, "weight_packed"):
            self._storage[module] = "packed"
        for module in modules_with(tensors, "weight_scale"):
            if module not in self._storage and f"{module}.weight" in self._known:
                self._storage[module] = self._plain_storage(module)

    def modules(self) -> Mapping[str, tuple[int, int]]:
        for module in self._storage:
            if matches(module, self._ignore, self._where):
                raise ModelFileError(
                    f"{self._where} ignores {module}, but its weights are stored quantised"
                )
        return {module: self._shape(module) for module in self._storage}

    def parts(self, module: str) -> Sequence[str]:
        names = ("packed", "scale", "zero_point", "shape", "g_idx")
        return [f"{module}.weight", *(f"{module}.weight_{name}" for name in names)]

    def read(self, module: str) -> StoredWeight:
        scheme, storage = self._scheme(module), self._storage[module]
        scale = load_checked(self._tensors, f"{module}.weight_scale", FLOATS)
        if storage == "float8":
            values = self._tensors.load_stored(f"{module}.weight")
            block = (1, scheme.group) if scheme.strategy == "group" else scheme.block
            return ScaledWeight.of(
                f"{module}.weight_scale", values, scale, block, rounds_inputs=scheme.rounds_inputs
            )
        return self._read_integers(module, scheme, scale)

    def _read_integers(self, module: str, scheme: _Scheme, scale: torch.Tensor) -> AffineWeight:
        rows, columns = self._shape(module)
        check_bits(scheme.bits, f"{self._where}: {module}")
        if scheme.strategy == "block":
            raise UnsupportedModelError(f"{self._where}: integers in blocks cannot be read")
        offset = 2 ** (scheme.bits - 1)
        if self._storage[module] == "packed":
            words = load_checked(self._tensors, f"{module}.weight_packed", WORDS)
            expect(f"{module}.weight_packed", tuple(words.shape), (rows, _words(columns, scheme)))
            codes = unpack_words(words, scheme.bits, dim=1)[:, :columns].contiguous()
        else:
            signed = self._tensors.load_stored(f"{module}.weight").to(torch.int16) + offset
            if int(signed.min()) < 0 or int(signed.max()) >= 2 * offset:
                raise ModelFileError(f"{module}.weight has values beyond {scheme.bits} bits")
            codes = signed.to(torch.uint8)
        width = scheme.group if scheme.strategy == "group" else columns
        groups = -(-columns // width)
        scale = _grid(f"{module}.weight_scale", scale, rows, groups)
        group_of = self._group_of(module, columns, width)
        return AffineWeight(
            codes=codes,
            scale=scale,
            zero=self._zero_point(module, scheme, rows, groups) + offset,
            group_of=group_of,
            group=regular_group(group_of, groups),
            bits=scheme.bits,
        )

    def _zero_point(self, module: str, scheme: _Scheme, rows: int, groups: int) -> torch.Tensor:
        """int32 [N, G], signed; zero where the scheme is symmetric."""
        name = f"{module}.weight_zero_point"
        if scheme.symmetric:
            return torch.zeros(rows, groups, dtype=torch.int32)
        if name not in self._known:
            raise ModelFileError(f"{name} is missing, and the scheme is asymmetric")
        stored = load_checked(self._tensors, name, INTEGERS)
        if self._storage[module] == "packed" and scheme.strategy in ("group", "channel"):
            expect(name, tuple(stored.shape), (_words(rows, scheme), groups))
            zeros = unpack_words(stored, scheme.bits, dim=0)[:rows].to(torch.int32)
            zeros -= 2 ** (scheme.bits - 1)
            return zeros
        return _grid(name, stored.to(torch.int32), rows, groups)

    def _group_of(self, module: str, columns: int, width: int) -> torch.Tensor:
        name = f"{module}.weight_g_idx"
        if name not in self._known:
            return torch.arange(columns) // width
        group_of = load_checked(self._tensors, name, INTEGERS).long()
        expect(name, tuple(group_of.shape), (columns,))
        if int(group_of.min()) == -1:  # written so where the order was not changed
            return torch.arange(columns) // width
        if not 0 <= int(group_of.min()) <= int(group_of.max()) < -(-columns // width):
            raise ModelFileError(f"{name} names groups that have no scale")
        return group_of

    def _shape(self, module: str) -> tuple[int, int]:
        if self._storage[module] != "packed":
            return matrix_shape(self._tensors, f"{module}.weight")
        rows, words = matrix_shape(self._tensors, f"{module}.weight_packed")
        name = f"{module}.weight_shape"
        shape = load_checked(self._tensors, name, INTEGERS)
        expect(name, tuple(shape.shape), (2,))
        stored = shape.tolist()
        scheme = self._scheme(module)
        check_bits(scheme.bits, f"{self._where}: {module}")
        if stored[0] != rows or _words(stored[1], scheme) != words:
            raise ModelFileError(
                f"{name} says {stored}, but weight_packed has shape ({rows}, {words})"
            )
        return rows, stored[1]

    def _plain_storage(self, module: str) -> Storage:
        dtype = self._tensors.dtype(f"{module}.weight")
        if dtype not in STORAGE_OF_DTYPE:
            raise UnsupportedModelError(
                f"{module}.weight is scaled and has dtype {dtype}; nonet reads {', '.join(STORAGE_OF_DTYPE)}"
            )
        return STORAGE_OF_DTYPE[dtype]

    def _scheme(self, module: str) -> _Scheme:
        for scheme in self._schemes:
            if matches(module, scheme.targets, self._where):
                return scheme
        raise ModelFileError(
            f"{self._where}: {module} is stored quantised, but no group of config_groups targets it"
        )


@dataclass(frozen=True, slots=True)
class _Scheme:
    """The weights of one entry of config_groups."""

    targets: tuple[object, ...]
    bits: int
    strategy: str
    group: int  # inputs in a group; of "group" alone
    symmetric: bool
    block: tuple[int, int] | None
    rounds_inputs: bool


def _schemes(config: Fields) -> list[_Scheme]:
    _refuse_what_is_not_read(config)
    groups = config.table("config_groups")
    schemes: list[_Scheme] = []
    for name in groups.values:
        group = groups.table(name)
        if not group.has("weights"):
            continue  # activations or the KV cache alone
        _check_format(group, "format")
        weights = group.table("weights")
        strategy = weights.values.get("strategy") or _default_strategy(weights)
        if strategy not in STRATEGIES:
            raise UnsupportedModelError(
                f"{weights.where}: strategy {strategy!r} cannot be read; {', '.join(STRATEGIES)} can"
            )
        schemes.append(
            _Scheme(
                targets=tuple(group.items("targets")),
                bits=weights.integer("num_bits", high=64),
                strategy=str(strategy),
                group=weights.integer("group_size") if strategy == "group" else 0,
                symmetric=weights.boolean("symmetric", True),
                block=block_size(weights, "block_structure") if strategy == "block" else None,
                rounds_inputs=group.has("input_activations"),
            )
        )
    return schemes


def _default_strategy(weights: Fields) -> str:
    if not weights.has("group_size"):
        return "tensor"
    return "channel" if weights.values["group_size"] == -1 else "group"


def _refuse_what_is_not_read(config: Fields) -> None:
    _check_format(config, "format", "mixed-precision")
    _check_format(config.table("sparsity_config"), "format")
    if config.table("transform_config").table("config_groups").values:
        raise UnsupportedModelError(f"{config.where}: rotated weights (transforms) cannot be read")


def _check_format(config: Fields, key: str, *also: str) -> None:
    given = config.values.get(key)
    if given is not None and given not in (*FORMATS, *also):
        raise UnsupportedModelError(
            f"{config.where}: the format {given!r} cannot be read; {', '.join(FORMATS)} can"
        )


def _words(count: int, scheme: _Scheme) -> int:
    return -(-count * scheme.bits // 32)


def _grid(name: str, values: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """[N, G] from one number, a number per output or one per group."""
    if values.numel() == 1:
        return values.view(1, 1).expand(rows, groups)
    if values.dim() == 1:
        values = values.unsqueeze(1)
    expect(name, tuple(values.shape), (rows, groups))
    return values
