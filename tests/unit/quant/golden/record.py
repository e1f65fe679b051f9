"""Records golden.safetensors and golden.json with the reference libraries; see README.md beside this file.

python record.py <folder with the unpacked wheels of compressed_tensors, loguru, autoawq and auto_gptq>
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
GROUP = 32


def module_at(path: Path) -> ModuleType:
    """One file of a library whose package cannot be imported without its GPU extension."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns) * 0.05


def ranges(values: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Asymmetric scales and zeros [N, G]; the zeros are from 1, as version 1 of GPTQ needs."""
    grouped = values.view(values.shape[0], -1, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, (-low / scale).round().clamp(1, 2**bits - 1)


def record_awq(folder: Path, out: dict[str, torch.Tensor]) -> dict[str, object]:
    """AutoAWQ's own packer and unpacker, its package entered by the side door: its front door wants a GPU."""
    sys.path.insert(0, str(folder / "autoawq"))
    packing = module_at(folder / "autoawq" / "awq" / "utils" / "packing_utils.py")
    awq = ModuleType("awq")
    awq.__path__ = [str(folder / "autoawq" / "awq")]  # the package, without running its __init__
    modules = ModuleType("awq.modules")
    modules.__path__ = [str(folder / "autoawq" / "awq" / "modules")]
    sys.modules |= {"awq": awq, "awq.modules": modules}
    gemm = module_at(folder / "autoawq" / "awq" / "modules" / "linear" / "gemm.py")
    linear = torch.nn.Linear(64, 32, bias=False)
    linear.weight.data = weight(32, 64)
    scale, zero = ranges(linear.weight.data, 4, GROUP)
    packed = gemm.WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scale.t().contiguous(), zeros=zero.t().contiguous()
    )
    parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}
    out |= {f"awq.{name}": tensor for name, tensor in parts.items()}
    dense = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP)
    out["awq.expected"] = dense.t().contiguous()
    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}


def record_gptq(
    folder: Path, out: dict[str, torch.Tensor], bits: int, act_order: bool
) -> dict[str, object]:
    library = folder / "auto_gptq" / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda.py"
    layer = module_at(library).QuantLinear(bits, GROUP, 64, 32, False, weight_dtype=torch.float16)
    linear = torch.nn.Linear(64, 32, bias=False)
    linear.weight.data = weight(32, 64)
    scale, zero = ranges(linear.weight.data, bits, GROUP)
    g_idx = torch.arange(64) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(64)]
    linear.weight.data = linear.weight.data.half()
    layer.pack(linear, scale.half(), zero.clone(), g_idx.to(torch.int32))
    name = f"gptq{bits}{'-act' if act_order else ''}"
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        out[f"{name}.{part}"] = getattr(layer, part)
    # The layer has no function that returns its weight: multiply the identity, one exact product per entry.
    out[f"{name}.expected"] = layer(torch.eye(64, dtype=torch.float16)).t().contiguous()
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}


def record_compressed(
    out: dict[str, torch.Tensor], name: str, kind: str, weights: dict[str, object], rows: int = 20
) -> dict[str, object]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    values = weight(rows, 96)
    strategy = weights["strategy"]
    if strategy == "block":
        height, width = weights["block_structure"]  # type: ignore[misc]
        blocks = values.view(rows // height, height, 96 // width, width)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        shape = {"tensor": (1, -1), "channel": (rows, -1), "group": (rows, 96 // GROUP, GROUP)}
        grouped = values.reshape(shape[str(strategy)])
        low, high = grouped.amin(-1), grouped.amax(-1)
        if strategy == "channel":
            low, high = low.unsqueeze(1), high.unsqueeze(1)
    scale, zero = calculate_qparams(low, high, args)
    state = {"weight": values.bfloat16(), "weight_scale": scale.bfloat16()}
    if not args.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress(state, scheme)
    out |= {f"{name}.{part}": tensor.contiguous() for part, tensor in stored.items()}
    out[f"{name}.expected"] = compressor.decompress(stored, scheme)["weight"].contiguous()
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
    }


def record_fp8(out: dict[str, torch.Tensor]) -> dict[str, object]:
    """transformers' own dequantisation of blocks."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    values = weight(48, 64)
    blocks = values.view(3, 16, 4, 16)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).view(48, 64).to(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None).convert({"weight": stored, "weight_scale_inv": scale})["weight"]
    out |= {"fp8.weight": stored, "fp8.weight_scale_inv": scale, "fp8.expected": expected}
    return {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]}


def main(folder: Path) -> None:
    torch.manual_seed(20)
    out: dict[str, torch.Tensor] = {}
    configs = {"awq": record_awq(folder, out), "fp8": record_fp8(out)}
    for bits in (4, 8):
        for act_order in (False, True):
            name = f"gptq{bits}{'-act' if act_order else ''}"
            configs[name] = record_gptq(folder, out, bits, act_order)
    sys.path.insert(0, str(folder))
    integer = {"type": "int", "symmetric": True}
    group = {"strategy": "group", "group_size": GROUP}
    for name, kind, weights in (
        ("pack4", "pack-quantized", integer | group | {"num_bits": 4}),
        ("pack4-asym", "pack-quantized", integer | group | {"num_bits": 4, "symmetric": False}),
        ("pack8-channel", "pack-quantized", integer | {"num_bits": 8, "strategy": "channel"}),
        ("int8-channel", "int-quantized", integer | {"num_bits": 8, "strategy": "channel"}),
        ("int8-asym", "int-quantized", integer | {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        ("int8-tensor", "int-quantized", integer | {"num_bits": 8, "strategy": "tensor"}),
        ("float-tensor", "float-quantized", {"type": "float", "num_bits": 8, "strategy": "tensor"}),
        ("float-channel", "float-quantized", {"type": "float", "num_bits": 8, "strategy": "channel"}),
        (
            "float-block",
            "float-quantized",
            {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [10, 32]},
        ),
    ):  # fmt: skip
        configs[name] = record_compressed(out, name, kind, weights)
    save_file({k: v.detach().contiguous() for k, v in out.items()}, HERE / "golden.safetensors")
    (HERE / "golden.json").write_text(json.dumps(configs, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
