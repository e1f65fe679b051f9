"""Weights in the layouts that the native kernels stream (csrc/linear.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from nonet.core.errors import ConfigError
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.inputs import Inputs
from nonet.kernels.native.library import DenseWeight, GroupwiseWeight
from nonet.kernels.native.memory import HugePages
from nonet.kernels.ops import WeightMatrix

__all__ = ["NativeWeight", "dense_weight", "pack_dense", "pack_groupwise"]

_PANEL = 16
_MOST_GROUP = 256  # inputs that a record can hold
_DENSE_ROW_UNITS = (
    304  # kDenseRowUnits of csrc/dense_tile.h: units of a block, and between two rounded rows
)
_INT8_UNITS, _INT8_ROW_UNITS = 304, 464  # kUnits and kInt8RowUnits of csrc/groupwise_int8.cpp


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A packed weight [N, K]: what the C side reads, and the tensors that it points into."""

    num_outputs: int
    num_inputs: int
    linear_kernel: str
    embed_kernel: str
    struct: ctypes.Structure
    tensors: tuple[torch.Tensor, ...]
    row_bytes: int  # of one row of activations, rounded for this weight

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)


def dense_weight(weight: WeightMatrix) -> torch.Tensor:
    """What codes stand for, where they may be multiplied so."""
    if isinstance(weight, torch.Tensor):
        return weight
    if weight.inputs in ("token", "group"):
        kind = "float8" if isinstance(weight, Float8Tensor) else "int8"
        raise ConfigError(
            f"the native kernels cannot round the {weight.shape[1]} inputs of a layer to {kind} in groups of "
            f"{weight.group}; use kernels reference"
        )
    return weight.dequantize()


def pack_dense(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    interleaved: int,
    pages: HugePages,
) -> NativeWeight:
    """[N, K] to panels of 16 outputs, `interleaved` of them step by step.

    That is [groups][K / per_unit][panels][16][per_unit]; the last group may hold fewer panels.
    """
    outputs, inputs = weight.shape
    name = "bfloat16" if dtype == torch.bfloat16 else "float32"
    per_unit = 2 if dtype == torch.bfloat16 else 1
    panels, steps = -(-outputs // _PANEL), -(-inputs // per_unit)
    units = pages.allocate((panels, steps, _PANEL, per_unit), dtype)
    source = weight.to(dtype)
    if inputs % per_unit:
        source = torch.nn.functional.pad(source, (0, steps * per_unit - inputs))
    source = _pad_rows(source, panels).view(panels, _PANEL, steps, per_unit)
    for first, last in _panel_groups(panels, interleaved):
        width = last - first if first + interleaved > last else interleaved
        many = source[first:last].view(-1, width, _PANEL, steps, per_unit)
        units[first:last].view(-1, steps, width, _PANEL, per_unit).copy_(
            many.permute(0, 3, 1, 2, 4)
        )
    padded_bias = _pad_bias(bias, panels, pages)
    struct = DenseWeight(
        units=units.data_ptr(),
        bias=padded_bias.data_ptr(),
        columns=outputs,
        depth=inputs,
        steps=steps,
    )
    return NativeWeight(
        num_outputs=outputs,
        num_inputs=inputs,
        linear_kernel=f"linear_{name}",
        embed_kernel=f"embed_{name}",
        struct=struct,
        tensors=(units, padded_bias),
        row_bytes=_row_bytes(steps, 1, _DENSE_ROW_UNITS, _DENSE_ROW_UNITS),
    )


def pack_groupwise(
    weight: GroupwiseTensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    rounding: Inputs,
    interleaved: int,
    pages: HugePages,
) -> NativeWeight | None:
    """Codes, scales and minimums as one stream of records; None for groups that the layout cannot hold.

    `rounding` says how activations meet them: exact, or in int8 with a scale for each group or each token.
    """
    if weight.inputs != "group" and (narrow := _narrow_group(weight.group)) is not None:
        weight = weight.in_groups_of(narrow)
    outputs, inputs = weight.shape
    group, bits = weight.group, weight.bits
    if bits not in (4, 8) or group % 16 or not 16 <= group <= _MOST_GROUP:
        return None
    zero = _zero_point(weight)
    numbers = [weight.scale] if zero is not None else [weight.scale, weight.minimum]
    is_half = all(torch.equal(values.half().float(), values) for values in numbers)
    records = _records(weight, numbers, is_half, interleaved, pages)
    padded_bias = _pad_bias(bias, records.shape[0], pages)
    struct = GroupwiseWeight(
        records=records.data_ptr(),
        bias=padded_bias.data_ptr(),
        columns=outputs,
        depth=inputs,
        group=group,
        bits=bits,
        zero=zero or 0,
        has_minimum=zero is None,
        is_half=is_half,
        record_bytes=records.shape[-1],
        by_token=rounding == "token",
    )
    if rounding != "exact":
        kernel = "linear_int8"
        row_bytes = _row_bytes(inputs // 4, group // 4, _INT8_UNITS, _INT8_ROW_UNITS)
    else:
        per_unit = 2 if dtype == torch.bfloat16 else 1
        kernel = f"linear_groupwise_{'bfloat16' if per_unit == 2 else 'float32'}"
        row_bytes = _row_bytes(
            inputs // per_unit, group // per_unit, _DENSE_ROW_UNITS, _DENSE_ROW_UNITS
        )
    return NativeWeight(
        num_outputs=outputs,
        num_inputs=inputs,
        linear_kernel=kernel,
        embed_kernel="embed_groupwise",
        struct=struct,
        tensors=(records, padded_bias),
        row_bytes=row_bytes,
    )


def _narrow_group(group: int) -> int | None:
    """The largest group that a record can hold and that divides this one, which no record can hold; else None."""
    if group <= _MOST_GROUP:
        return None
    return next((size for size in range(_MOST_GROUP, 0, -16) if group % size == 0), None)


def _records(
    weight: GroupwiseTensor,
    numbers: list[torch.Tensor],
    is_half: bool,
    interleaved: int,
    pages: HugePages,
) -> torch.Tensor:
    """uint8 [panels, groups, bytes] of codes and numbers, `interleaved` panels group by group."""
    outputs, inputs = weight.shape
    panels, groups = -(-outputs // _PANEL), inputs // weight.group
    parts = [_code_bytes(weight, panels)]
    for values in numbers:
        padded = _pad_rows(values.half() if is_half else values, panels)
        ordered = padded.view(panels, _PANEL, groups).transpose(1, 2).contiguous()
        parts.append(ordered.view(torch.uint8))
    record_bytes = sum(part.shape[-1] for part in parts)
    records = pages.allocate((panels, groups, record_bytes), torch.uint8)
    source = torch.cat(parts, dim=-1)
    for first, last in _panel_groups(panels, interleaved):
        width = last - first if first + interleaved > last else interleaved
        many = source[first:last].view(-1, width, groups, record_bytes)
        records[first:last].view(-1, groups, width, record_bytes).copy_(many.transpose(1, 2))
    return records


def _panel_groups(panels: int, interleaved: int) -> list[tuple[int, int]]:
    """Ranges of panels that are interleaved alike: whole groups, then the rest."""
    whole = panels // interleaved * interleaved
    return [(first, last) for first, last in ((0, whole), (whole, panels)) if first < last]


def _code_bytes(weight: GroupwiseTensor, panels: int) -> torch.Tensor:
    """uint8 [panels, groups, bytes]: [group / 4][16][4] codes; of 4 bits, two halves of the steps share bytes."""
    groups, steps = weight.shape[1] // weight.group, weight.group // 4
    codes = _pad_rows(weight.codes, panels).view(panels, _PANEL, groups, steps, 4)
    codes = codes.permute(0, 2, 3, 1, 4)
    if weight.bits == 4:
        codes = codes[:, :, : steps // 2] | codes[:, :, steps // 2 :] << 4
    return codes.reshape(panels, groups, -1)


def _zero_point(weight: GroupwiseTensor) -> int | None:
    """z when minimum = -z * scale everywhere, bit for bit."""
    used = weight.scale != 0
    if not used.any():
        return 0 if not weight.minimum.any() else None
    first = used.flatten().nonzero()[0]
    ratio = -weight.minimum.flatten()[first] / weight.scale.flatten()[first]
    zero = round(float(ratio)) if ratio.isfinite() else -1
    if not 0 <= zero <= 255:
        return None
    return zero if torch.equal(weight.minimum, weight.scale * -zero) else None


def _pad_rows(values: torch.Tensor, panels: int) -> torch.Tensor:
    missing = panels * _PANEL - values.shape[0]
    return torch.nn.functional.pad(values, (0, 0, 0, missing)) if missing else values


def _pad_bias(bias: torch.Tensor | None, panels: int, pages: HugePages) -> torch.Tensor:
    padded = pages.allocate((panels * _PANEL,), torch.float32)
    if bias is not None:
        padded[: bias.shape[0]] = bias.float()
    return padded


def _row_bytes(units: int, granule: int, block_units: int, row_units: int) -> int:
    """A rounded row: blocks of whole granules of at most `block_units` units, each `row_units` long."""
    granules = -(-units // granule)
    return max(1, -(-granules // (block_units // granule))) * row_units * 4
