"""Records gptqmodel.safetensors and gptqmodel.json with GPTQModel itself; see README.md beside this file.

python record_gptqmodel.py <folder with the unpacked gptqmodel and the packages that it imports>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
GROUP, ROWS, COLUMNS = 32, 32, 96
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def ranges(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Asymmetric scales and zeros [N, G]; a zero of 0, where all of a group is positive, is what version 2 is for."""
    grouped = values.view(ROWS, -1, GROUP)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def packed(bits: int, act_order: bool) -> Any:
    """A layer as GPTQModel packs it: version 2 of the format, the one that this layer computes with."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    values = torch.randn(ROWS, COLUMNS) * 0.05
    values[::3] = values[::3].abs()
    scale, zero = ranges(values, bits)
    g_idx = torch.arange(COLUMNS, dtype=torch.int32) // GROUP
    order = torch.randperm(COLUMNS) if act_order else torch.arange(COLUMNS)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = values[:, order]
    layer = TorchLinear(
        bits=bits, group_size=GROUP, sym=False, desc_act=act_order, in_features=COLUMNS, out_features=ROWS
    )  # fmt: skip
    layer.pack(linear, scale, zero, g_idx[order].contiguous())
    return layer.eval()


def main(folder: Path) -> None:
    # The sdist unpacks to a folder with its version; what it imports lies beside it.
    sys.path[:0] = [str(folder), *map(str, folder.glob("gptqmodel-*"))]
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import (
        convert_gptq_v1_to_v2_format_module,
        convert_gptq_v2_to_v1_format_module,
    )

    torch.manual_seed(21)
    out: dict[str, torch.Tensor] = {}
    configs: dict[str, Any] = {}

    def record(name: str, layer: Any, version: str) -> None:
        config = QuantizeConfig(
            bits=layer.bits, group_size=GROUP, desc_act=layer.desc_act, sym=False, format=version
        )
        for part in PARTS:
            out[f"{name}.{part}"] = getattr(layer, part).detach().clone().contiguous()
        configs[name] = {key: one for key, one in config.to_dict().items() if key != "meta"}

    for bits in (4, 8):
        for act_order in (False, True):
            tail = f"gptq{bits}{'-act' if act_order else ''}"
            layer = packed(bits, act_order)
            record(f"v2-{tail}", layer, "gptq_v2")
            out[f"v2-{tail}.expected"] = layer.dequantize_weight().t().detach().contiguous()
            if act_order:
                continue
            # The same weights in version 1: a zero of 0 borrows from its neighbour in the word.
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=GROUP))
            record(f"v1-{tail}", layer, "gptq")
            convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
            layer.clear_weight_cache()
            out[f"v1-{tail}.expected"] = layer.dequantize_weight().t().detach().contiguous()
    save_file(out, HERE / "gptqmodel.safetensors")
    (HERE / "gptqmodel.json").write_text(json.dumps(configs, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
