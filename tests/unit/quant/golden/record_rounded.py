"""Records rounded.safetensors with torchao; see README.md beside this file.

python record_rounded.py <folder with the unpacked wheel of torchao>
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROWS, COLUMNS = 24, 192

# name: bits and inputs in a group
INTEGERS = {
    "int8-channel": (8, COLUMNS),
    "int8-32": (8, 32),
    "int4-32": (4, 32),
    "int4-96": (4, 96),
}
# name: rows and columns of a block
FLOATS = {"fp8-channel": (1, COLUMNS), "fp8-tensor": (ROWS, COLUMNS), "fp8-block": (8, 64)}


def main(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    from torchao.quantization import quant_primitives as torchao

    torch.manual_seed(30)
    weight = torch.randn(ROWS, COLUMNS) * 0.05 * torch.logspace(-1, 1, ROWS)[:, None]
    out = {"weight": weight}
    for name, (bits, group) in INTEGERS.items():
        most = 2 ** (bits - 1) - 1
        symmetric = torchao.MappingType.SYMMETRIC
        scale, zero = torchao.choose_qparams_affine(
            weight, symmetric, (1, group), torch.int8, -most, most, scale_dtype=torch.float32
        )
        stored = scale.half().float()  # as kernels store it; torchao rounds with what it is given
        args = ((1, group), stored, zero, torch.int8, -most - 1, most)
        codes = torchao.quantize_affine(weight, *args)
        out[f"{name}.scale"] = scale
        out[f"{name}.expected"] = torchao.dequantize_affine(codes, *args)
    for name, block in FLOATS.items():
        scale = torchao._choose_scale_float8(weight, block, torch.float8_e4m3fn)
        values = torchao._quantize_affine_float8(weight, scale, torch.float8_e4m3fn)
        out[f"{name}.scale"] = scale
        out[f"{name}.values"] = values
        out[f"{name}.expected"] = torchao._dequantize_affine_float8(values, scale, torch.float32)
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / "rounded.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
