"""Times the row-wise kernels and linear layers: cuBLAS, and our own kernel for few rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from nonet.kernels.triton.linear import DenseLinear, Float8Linear
from nonet.kernels.triton.linear_few import FewRowsTiling
from nonet.kernels.triton.linear_one import OneRowTiling, linear_one
from nonet.kernels.triton.ops import TritonOps
from nonet.kernels.triton.quantize_rows import quantize_rows
from tests.kernels.gpu_bench_attention import Problem
from tests.kernels.gpu_timing import DEVICE, DTYPE, LAYOUT, Row, copies_for, seconds


def row_wise() -> list[Row]:
    """Bytes that must move over time, of the fused kernels."""
    ops = TritonOps(DTYPE, DEVICE)
    weight = torch.rand(4096, device=DEVICE)
    cos_sin = torch.rand(4096, 128, device=DEVICE)
    rows: list[Row] = []
    for tokens in (1, 64, 256, 16384):
        copies = copies_for(tokens * 6144 * 2)
        x, residual = (
            [torch.randn(tokens, 4096, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
            for _ in range(2)
        )
        wide = [
            torch.randn(tokens, 28672, device=DEVICE, dtype=DTYPE) for _ in range(min(copies, 8))
        ]
        qkv = [torch.randn(tokens, 6144, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        problem = Problem.make(1, tokens, tokens, 64, 1)
        inputs = problem.inputs[0]
        inputs.slots.copy_(torch.randperm(problem.cache.keys.shape[0] * 64, device=DEVICE)[:tokens])
        inputs.positions.remainder_(4096)
        calls: dict[str, tuple[list[Callable[[], object]], int]] = {
            "add_rms_norm": (
                [lambda a=a, b=b: ops.add_rms_norm(a, b, weight, 1e-5) for a, b in zip(x, residual, strict=True)],
                4 * 4096 * 2,
            ),
            "gated": ([lambda a=a: ops.gated(a, "silu") for a in wide], 3 * 14336 * 2),
            "rope_store": (
                [
                    lambda a=a, c=problem.cache, i=inputs: ops.rope_store(
                        a, LAYOUT, cos_sin, c, i, None, None, 1e-5
                    )
                    for a in qkv
                ],
                2 * 6144 * 2,
            ),
        }  # fmt: skip
        for name, (calls_of, moved) in calls.items():
            one = seconds(calls_of)
            rows.append(
                {
                    "what": name,
                    "tokens": tokens,
                    "us": one * 1e6,
                    "TBps": tokens * moved / one / 1e12,
                }
            )
    return rows


def linears() -> list[Row]:
    rows: list[Row] = []
    for n, k in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)):
        copies = copies_for(n * k * 2)
        weights = [torch.randn(n, k, device=DEVICE, dtype=DTYPE) for _ in range(copies)]
        row: Row = {"what": "linear", "N": n, "K": k}
        for m in (1, 16, 64, 256):
            x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
            one = seconds([lambda w=w, x=x: F.linear(x, w) for w in weights])
            row[f"us_{m}"] = one * 1e6
            row[f"TBps_{m}"] = n * k * 2 / one / 1e12
            if n > 100000:
                one = seconds(
                    [lambda w=w, x=x: torch.mm(x, w.t(), out_dtype=torch.float32) for w in weights]
                )
                row[f"float32_out_us_{m}"] = one * 1e6
        rows.append(row)
    return rows


ONE_ROW = [
    OneRowTiling(outputs, inputs, warps)
    for outputs, inputs, warps in (
        (4, 1024, 1), (8, 1024, 2), (4, 512, 1), (8, 512, 1), (8, 1024, 4), (4, 2048, 4), (2, 4096, 4), (4, 4096, 8),
    )
]  # fmt: skip


def one_row() -> list[Row]:
    """Products of one row: as the layers run them, and by tiling."""
    ops = TritonOps(DTYPE, DEVICE)
    shapes = ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336))
    return [_one_row(ops, is_float8, n, k) for is_float8 in (False, True) for n, k in shapes]


def _one_row(ops: TritonOps, is_float8: bool, n: int, k: int) -> Row:
    kind = "fp8" if is_float8 else "bf16"
    row: Row = {"what": "one row", "kind": kind, "N": n, "K": k}
    x = torch.randn(1, k, device=DEVICE, dtype=DTYPE)
    out = torch.empty(1, n, device=DEVICE, dtype=DTYPE)
    weights: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    calls: list[Callable[[], object]] = []
    codes, x_scale = x, None
    if is_float8:
        rounded = quantize_rows(x)
        codes, x_scale = rounded.codes, rounded.scale
    for _ in range(copies_for(n * k * (1 if is_float8 else 2))):
        dense = torch.randn(n, k, device=DEVICE, dtype=DTYPE)
        if is_float8:
            packed = ops.pack_float8(dense)
            weights.append((packed.weight, packed.scale))
            calls.append(partial(ops.linears.float8, rounded, packed, DTYPE))
        else:
            weights.append((dense, None))
            calls.append(partial(ops.linears.dense, x, DenseLinear(dense, None)))
    row["product_us"] = seconds(calls) * 1e6
    for tiling in ONE_ROW:
        ones = [
            partial(linear_one, codes, x_scale, weight, scale, None, out=out, tiling=tiling)
            for weight, scale in weights
        ]
        row[f"{tiling.outputs}x{tiling.inputs}w{tiling.warps}_us"] = seconds(ones) * 1e6
    return row


def tune_few() -> list[Row]:
    """Our kernel for few rows over bfloat16 and float8 weights, by tiling; then cuBLAS on float8."""
    ops = TritonOps(DTYPE, DEVICE)
    rows: list[Row] = []
    for n, k in ((4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336)):
        dense = [
            torch.randn(n, k, device=DEVICE, dtype=DTYPE) for _ in range(copies_for(n * k * 2))
        ]
        packed = [ops.pack_float8(one) for one in dense]
        for kind, m in (
            ("bf16", 1),
            ("bf16", 16),
            ("fp8", 1),
            ("fp8", 16),
            ("fp8", 64),
            ("fp8", 128),
        ):
            x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
            rounded = quantize_rows(x)
            out = torch.empty(m, n, device=DEVICE, dtype=DTYPE)
            row: Row = {"what": "few rows", "kind": kind, "N": n, "K": k, "M": m}
            for outputs, inputs, warps, stages, per_sm in FEW_TILINGS[kind, m]:
                tiling = FewRowsTiling(outputs, inputs, warps, stages, 132 * per_sm)
                few = partial(ops.linears.few, bias=None, out=out, tiling=tiling)
                calls: list[Callable[[], object]] = [
                    partial(few, x, None, one, None)
                    if kind == "bf16"
                    else partial(few, rounded.codes, rounded.scale, other.weight, other.scale)
                    for one, other in zip(dense, packed, strict=False)
                ]
                try:
                    row[f"{outputs}/{inputs}/{warps}/{stages}/{per_sm}"] = seconds(calls) * 1e6
                except Exception as error:  # a tiling that does not fit is a result
                    row["error"] = f"{outputs}/{inputs}/{stages} {str(error)[:50]}"
            rows.append(row)
        rows += float8_rows(packed, n, k)
    return rows


DENSE_TILINGS = [(64, 128, 4, 5, 1), (64, 128, 4, 4, 2)]
FLOAT8_TILINGS = [
    (64, 256, 4, 4, 2), (64, 256, 4, 6, 1), (128, 128, 4, 4, 2), (64, 128, 4, 6, 2),
    (64, 128, 4, 8, 2), (64, 256, 4, 4, 3), (128, 256, 4, 4, 1), (64, 512, 4, 3, 2),
]  # fmt: skip
FEW_TILINGS = {
    ("bf16", 1): DENSE_TILINGS,
    ("bf16", 16): DENSE_TILINGS,
    ("fp8", 1): FLOAT8_TILINGS,
    ("fp8", 16): FLOAT8_TILINGS,
    ("fp8", 64): [
        (64, 128, 4, 4, 2), (128, 128, 4, 4, 2), (128, 128, 8, 4, 2), (64, 256, 4, 4, 1),
        (128, 256, 8, 3, 1), (128, 128, 8, 5, 1),
    ],
    ("fp8", 128): [
        (128, 128, 8, 4, 1), (128, 128, 8, 3, 2), (64, 128, 4, 4, 2), (128, 256, 8, 3, 1),
    ],
}  # fmt: skip


def float8_rows(packed: list[Float8Linear], n: int, k: int) -> list[Row]:
    """cuBLAS with scales per row and per tensor, and the rounding of activations, us."""
    rows: list[Row] = []
    unit = torch.ones((), device=DEVICE)
    for m in (64, 128, 256):
        x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
        rounded = quantize_rows(x)
        codes, scale = rounded.codes, rounded.scale

        def call(
            w: Float8Linear, a: torch.Tensor, b: torch.Tensor, codes: torch.Tensor = codes
        ) -> torch.Tensor:
            return torch._scaled_mm(
                codes, w.weight.t(), scale_a=a, scale_b=b, out_dtype=DTYPE, use_fast_accum=True
            )

        row: Row = {"what": "scaled_mm", "N": n, "K": k, "M": m}
        row["row_wise_us"] = 1e6 * seconds(
            [lambda w=w, s=scale, c=call: c(w, s, w.scale[None, :]) for w in packed]
        )
        row["per_tensor_us"] = 1e6 * seconds([lambda w=w, c=call: c(w, unit, unit) for w in packed])
        row["quantize_us"] = 1e6 * seconds([lambda x=x: quantize_rows(x)] * 8)
        rows.append(row)
    return rows
