"""Linear layers in every asked weight format, and the output head."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from nonet.bench.device.kernels.problem import Bench, Calls, Problem
from nonet.config.memory import KEPT_FORMS
from nonet.core.model_spec import ModelSpec
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.ops import WeightMatrix
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.quant.formats.base import StoredMatrix, WeightFormat

__all__ = ["linear", "logits"]

ROWS = {"cuda": (1, 16, 64, 256, 4096), "cpu": (1, 8, 64)}
HEAD_ROWS = {"cuda": (1, 16, 64, 256), "cpu": (1, 8)}


def linear(bench: Bench) -> Iterator[Problem]:
    """Each matrix of a layer as the model fuses it, for few and many rows, beside torch's dense product.

    With fp8 the rounding of x counts, as a launch of its own; in a model the operation before it does that.
    """
    for name, (outputs, inputs) in _fused(bench.spec).items():
        for weight_format in bench.weight_formats:
            held: WeightFormat = WEIGHT_FORMATS.build(weight_format)
            form = held.form_of(bench.spec)
            probe = _converted(held, bench, 1, inputs)
            each = _held_bytes(probe, bench, held) * outputs
            for rows in bench.rows or ROWS[bench.device.type]:
                moved = each + rows * (inputs + outputs) * bench.activation_bytes
                yield Problem(
                    case={"matrix": name, "N": outputs, "K": inputs, "M": rows, "weights": weight_format},
                    num_bytes=moved,
                    flops=2 * rows * outputs * inputs,
                    make=_our_linear(bench, held, outputs, inputs, rows),
                    arithmetic="float8" if _is_kept(held, bench) and form == "float8" else "",
                    rivals={"torch dense": _torch_linear(bench, outputs, inputs, rows)}
                    if form == "dense"
                    else {},
                )  # fmt: skip


def logits(bench: Bench) -> Iterator[Problem]:
    """The output head into float32, weights in the model's dtype."""
    outputs, inputs = bench.spec.vocab_size, bench.spec.hidden_size
    for rows in bench.rows or HEAD_ROWS[bench.device.type]:
        read = outputs * bench.element_bytes + rows * bench.activation_bytes
        moved = inputs * read + rows * outputs * 4
        yield Problem(
            case={"N": outputs, "K": inputs, "M": rows},
            num_bytes=moved,
            flops=2 * rows * outputs * inputs,
            make=_our_logits(bench, outputs, inputs, rows),
            rivals={"torch dense": _torch_linear(bench, outputs, inputs, rows)},
        )


def _fused(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    heads, hidden = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim, spec.hidden_size
    linears = spec.linears
    return {
        "qkv": (heads, hidden),
        "o": linears["self_attn.o_proj"],
        "gate_up": (2 * spec.intermediate_size, hidden),
        "down": linears["mlp.down_proj"],
    }


def _our_linear(
    bench: Bench, held: WeightFormat, outputs: int, inputs: int, rows: int
) -> Callable[[], Calls]:
    def make() -> Calls:
        x = bench.activations(rows, inputs)
        copies = bench.copies(outputs * inputs * bench.element_bytes // 2)
        packed = [bench.ops.pack(_converted(held, bench, outputs, inputs)) for _ in range(copies)]
        return [lambda w=w: bench.ops.linear(x, w) for w in packed]  # type: ignore[misc]

    return make


def _torch_linear(bench: Bench, outputs: int, inputs: int, rows: int) -> Callable[[], Calls]:
    def make() -> Calls:
        x = bench.random(rows, inputs)
        copies = bench.copies(outputs * inputs * bench.element_bytes)
        weights = [bench.random(outputs, inputs) for _ in range(copies)]
        return [lambda w=w: F.linear(x, w) for w in weights]  # type: ignore[misc]

    return make


def _our_logits(bench: Bench, outputs: int, inputs: int, rows: int) -> Callable[[], Calls]:
    def make() -> Calls:
        x = bench.activations(rows, inputs)
        copies = bench.copies(outputs * inputs * bench.element_bytes)
        packed = [bench.ops.pack(bench.random(outputs, inputs)) for _ in range(copies)]
        return [lambda w=w: bench.ops.logits(x, w, None) for w in packed]  # type: ignore[misc]

    return make


def _converted(held: WeightFormat, bench: Bench, outputs: int, inputs: int) -> WeightMatrix:
    weight = 0.02 * bench.random(outputs, inputs)
    return held.convert(StoredMatrix(dense=lambda: weight, codes=lambda: None), "linear")


def _is_kept(held: WeightFormat, bench: Bench) -> bool:
    form = held.form_of(bench.spec)
    return form == "dense" or form in KEPT_FORMS.get(bench.ops.name, ())


def _held_bytes(matrix: WeightMatrix, bench: Bench, held: WeightFormat) -> int:
    """Of one output, as these kernels hold it."""
    dense = matrix.shape[1] * bench.element_bytes
    if isinstance(matrix, torch.Tensor) or not _is_kept(held, bench):
        return dense
    if isinstance(matrix, Float8Tensor):
        return matrix.values.nbytes + matrix.scale.nbytes
    assert isinstance(matrix, GroupwiseTensor)
    return matrix.codes.numel() * matrix.bits // 8 + matrix.scale.nbytes + matrix.minimum.nbytes
