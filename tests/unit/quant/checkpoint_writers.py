"""Writers of the published layouts, for tests: slow, one code at a time, from the layouts' descriptions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nonet.core.fields import Fields
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.quant.checkpoints.source import QuantizedSource

__all__ = [
    "AWQ_ORDER",
    "TensorTable",
    "open_table",
    "pack_words",
    "write_awq",
    "write_gptq",
    "write_packed",
]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds this column
_SPELLED = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.int64: "I64", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip


class TensorTable:
    """Stored tensors in memory."""

    format = "table"

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return _SPELLED[self._tensors[name].dtype]

    def load(self, name: str) -> torch.Tensor:
        assert self._tensors[name].dtype in (torch.float32, torch.float16, torch.bfloat16)
        return self._tensors[name]

    def load_stored(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def load_codes(self, name: str) -> GroupwiseTensor | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


def open_table(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, object]
) -> QuantizedSource:
    return QuantizedSource(TensorTable(tensors), Fields(config, "config.json: quantization_config"))


def pack_words(
    codes: torch.Tensor, bits: int, dim: int, order: Sequence[int] | None = None
) -> torch.Tensor:
    """Unsigned codes to int32 words along `dim`; field i of a word takes the code `order[i]`."""
    table = codes.tolist() if dim == 1 else codes.t().tolist()
    per_word = 32 // bits
    order = order or range(per_word)
    words: list[list[int]] = []
    for row in table:
        padded = row + [0] * (-len(row) % per_word)
        words.append([])
        for start in range(0, len(padded), per_word):
            fields = [padded[start + column] << bits * i for i, column in enumerate(order)]
            value = sum(fields)
            words[-1].append(value - 2**32 if value >= 2**31 else value)
    packed = torch.tensor(words, dtype=torch.int32)
    return packed if dim == 1 else packed.t().contiguous()


def write_awq(
    codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, order: Sequence[int] = AWQ_ORDER
) -> dict[str, torch.Tensor]:
    """codes [N, K], zeros and scales [N, G]."""
    return {
        "qweight": pack_words(codes.t(), 4, 1, order),
        "qzeros": pack_words(zeros.t(), 4, 1, order),
        "scales": scales.t().contiguous(),
    }


def write_gptq(
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    *,
    bits: int,
    g_idx: torch.Tensor,
    version: int,
) -> dict[str, torch.Tensor]:
    """Version 1 takes one from every zero by subtracting one word of ones."""
    qzeros = pack_words(zeros.t(), bits, 1)
    if version == 1:
        qzeros = qzeros - {4: 0x11111111, 8: 0x01010101}[bits]
    return {
        "qweight": pack_words(codes.t(), bits, 0),
        "qzeros": qzeros,
        "scales": scales.t().contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def write_packed(
    codes: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor, *, bits: int
) -> dict[str, torch.Tensor]:
    """compressed-tensors; unsigned codes and zeros, which are the signed ones plus 2**(bits - 1)."""
    parts = {
        "weight_packed": pack_words(codes, bits, 1),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape),
    }
    return parts if zeros is None else parts | {"weight_zero_point": pack_words(zeros, bits, 0)}
