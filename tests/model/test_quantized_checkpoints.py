"""Tiny Llamas on disk in every published layout, run end to end, against transformers with the dequantised weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from nonet.core.errors import ConfigError, ModelFileError, UnsupportedModelError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.engine.scorer import Scorer
from nonet.weights.open import open_weights
from nonet.weights.spec import read_spec
from tests.model.families import save
from tests.unit.quant.checkpoint_writers import write_awq, write_gptq, write_packed

TOLERANCE = 1e-3
TOKENS = torch.randint(0, 199, (60,), generator=torch.Generator().manual_seed(5)).tolist()
GROUP = 16
Parts = dict[str, torch.Tensor]
# The tensors of the layout, the exact matrix that they mean, and the type that it is rounded to when it is not held
# as codes.
Written = tuple[Parts, torch.Tensor, torch.dtype]
HALF = torch.float16


def rounded(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric codes [N, K], zeros and float16 scales [N, G]."""
    grouped = weight.view(weight.shape[0], -1, GROUP)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half()
    zero = (-low / scale.float()).round().clamp(0, 2**bits - 1).int()
    codes = (grouped / scale.float().unsqueeze(-1)).round() + zero.unsqueeze(-1)
    return codes.clamp(0, 2**bits - 1).int().view(weight.shape), zero, scale


def meant(
    codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, group_of: torch.Tensor
) -> torch.Tensor:
    return (codes - zero[:, group_of]).float() * scale[:, group_of].float()


def groups(weight: torch.Tensor) -> torch.Tensor:
    return torch.arange(weight.shape[1]) // GROUP


def awq(weight: torch.Tensor) -> Written:
    codes, zero, scale = rounded(weight, 4)
    return write_awq(codes, zero, scale), meant(codes, zero, scale, groups(weight)), HALF


def gptq(bits: int, version: int, act_order: bool = False) -> Callable[[torch.Tensor], Written]:
    def write(weight: torch.Tensor) -> Written:
        order = torch.randperm(weight.shape[1]) if act_order else torch.arange(weight.shape[1])
        codes, zero, scale = rounded(weight[:, order].contiguous(), bits)
        back = order.argsort()
        codes, g_idx = codes[:, back], groups(weight)[back]
        parts = write_gptq(codes, zero, scale, bits=bits, g_idx=g_idx, version=version)
        return parts, meant(codes, zero, scale, g_idx), HALF

    return write


def packed(weight: torch.Tensor) -> Written:
    codes, zero, scale = rounded(weight, 4)
    parts = write_packed(codes, zero, scale, bits=4)
    return parts, meant(codes, zero, scale, groups(weight)), HALF


def int8(weight: torch.Tensor) -> Written:
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight / scale.float()).round().clamp(-128, 127).to(torch.int8)
    exact = codes.float() * scale.float()
    return {"weight": codes, "weight_scale": scale}, exact, torch.bfloat16


def float8(scale_name: str, kind: str) -> Callable[[torch.Tensor], Written]:
    def write(weight: torch.Tensor) -> Written:
        rows, columns = weight.shape
        block = {"tensor": (rows, columns), "output": (1, columns), "block": (32, 16)}[kind]
        row_of, column_of = torch.arange(rows) // block[0], torch.arange(columns) // block[1]
        grid = torch.zeros(int(row_of[-1]) + 1, int(column_of[-1]) + 1)
        place = row_of.unsqueeze(1) * grid.shape[1] + column_of
        grid.view(-1).scatter_reduce_(0, place.view(-1), weight.abs().view(-1), "amax")
        grid /= 448
        spread = grid[row_of][:, column_of]
        values = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        scale = grid.view(()) if kind == "tensor" else grid
        return {"weight": values, scale_name: scale}, values.float() * spread, torch.float32

    return write


def compressed(kind: str, ignore: list[str], **weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group},
        "ignore": ignore, "quantization_status": "compressed",
    }  # fmt: skip


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
V2 = {"checkpoint_format": "gptq_v2"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
IGNORE = ["lm_head", "re:.*mlp.down_proj"]
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}
LAYOUTS: dict[str, tuple[dict[str, object], Callable[[torch.Tensor], Written]]] = {
    "awq": (AWQ, awq),
    "gptq": (GPTQ, gptq(4, 1)),
    "gptq-v2": (GPTQ | V2, gptq(4, 2)),
    "gptq-8bit": (GPTQ | {"bits": 8}, gptq(8, 1)),
    "gptq-act-order": (GPTQ | V2 | {"desc_act": True}, gptq(4, 2, act_order=True)),
    "ct-packed": (compressed("pack-quantized", IGNORE, **INT4), packed),
    "ct-int8": (compressed("int-quantized", ["lm_head"], **INT8), int8),
    "ct-float8": (
        compressed("float-quantized", ["re:.*lm_head"], type="float", num_bits=8, strategy="channel"),
        float8("weight_scale", "output"),
    ),
    "fp8-tensor": (FP8, float8("weight_scale", "tensor")),
    "fp8-output": (FP8, float8("weight_scale", "output")),
    "fp8-blocks": (FP8 | {"weight_block_size": [32, 16]}, float8("weight_scale_inv", "block")),
}  # fmt: skip
WITHOUT_CODES = ("ct-float8", "fp8-tensor", "fp8-output", "fp8-blocks", "gptq-act-order")


def publish(name: str, folder: Path, as_codes: bool = False) -> PreTrainedModel:
    """Rewrite a tiny Llama's directory in the layout; the oracle has the weights that the layout means."""
    config, write = LAYOUTS[name]
    oracle = save("llama", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    state = oracle.state_dict()
    for full in [n for n in tensors if n.endswith("_proj.weight")]:
        if "down_proj" in full and IGNORE[1] in config.get("ignore", []):  # type: ignore[operator]
            continue
        parts, exact, dtype = write(tensors.pop(full))
        tensors |= {full.removesuffix("weight") + part: t for part, t in parts.items()}
        state[full].copy_(exact if as_codes else exact.to(dtype).float())
    save_file({k: t.contiguous() for k, t in tensors.items()}, file, metadata={"format": "pt"})
    declare(folder, config)
    return oracle


def declare(folder: Path, config: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


@pytest.mark.parametrize("weight_format", ["dense", "native"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_transformers_with_dequantised_weights(
    name: str, weight_format: str, tmp_path: Path
) -> None:
    as_codes = weight_format == "native" and name not in WITHOUT_CODES
    oracle = publish(name, tmp_path, as_codes)
    with torch.no_grad():
        expected = oracle(torch.tensor([TOKENS])).logits[0]
    ours = Scorer(tmp_path, weight_format=weight_format).logits(TOKENS)
    assert expected.abs().max() > 0.5, "logits this small would hide a mistake"
    assert (ours - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_stored_as_codes_is_said(name: str, tmp_path: Path) -> None:
    publish(name, tmp_path)
    declared = LAYOUTS[name][0]
    source = open_weights(tmp_path)
    codes = source.load_groupwise("model.layers.0.self_attn.q_proj.weight")
    assert (codes is None) == (name in WITHOUT_CODES)
    assert source.load_groupwise("lm_head.weight") is None
    assert source.format == f"safetensors, {declared['quant_method']}"
    bits = read_spec(tmp_path).code_bits
    assert bits == (None if codes is None else codes.bits)
    source.close()


def test_the_check_rejects_other_zeros(tmp_path: Path) -> None:
    """Mutant: version 1 read as version 2, every zero off by one."""
    oracle = publish("gptq", tmp_path)
    declare(tmp_path, GPTQ | V2)
    with torch.no_grad():
        expected = oracle(torch.tensor([TOKENS])).logits[0]
    assert (Scorer(tmp_path).logits(TOKENS) - expected).abs().max().item() > TOLERANCE


def test_an_unknown_method_is_refused_by_name(tmp_path: Path) -> None:
    publish("awq", tmp_path)
    declare(tmp_path, {"quant_method": "hqq"})
    known = "'hqq' cannot be read; awq, compressed-tensors, fbgemm_fp8, fp8, gptq can"
    for read in (read_spec, open_weights):
        with pytest.raises(UnsupportedModelError, match=known):
            read(tmp_path)


def test_a_method_without_its_tensors_is_refused(tmp_path: Path) -> None:
    save("llama", tmp_path)
    declare(tmp_path, AWQ)
    with pytest.raises(ModelFileError, match="no tensor is stored in that layout"):
        open_weights(tmp_path)


@pytest.mark.parametrize(("name", "weight_format"), [("gptq", "native"), ("fp8-blocks", "dense")])
def test_the_whole_engine_runs_it(name: str, weight_format: str, tmp_path: Path) -> None:
    oracle = publish(name, tmp_path, as_codes=weight_format == "native")
    with torch.no_grad():
        whole = oracle.generate(
            torch.tensor([TOKENS]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    request = Request(request_id="r", prompt_ids=TOKENS, params=params, eos_ids=(2,))
    tokens: list[int] = []
    options = {"dtype": "float32", "num_blocks": 64, "weight_format": weight_format}
    with LLM(str(tmp_path), **options) as llm:
        llm.engine.add(request)
        while llm.engine.has_work:
            tokens.extend(token for delta in llm.engine.step() for token in delta.token_ids)
    assert tokens == whole[0, len(TOKENS) :].tolist()


def test_native_is_refused_where_nothing_is_stored_as_codes(tmp_path: Path) -> None:
    publish("fp8-tensor", tmp_path)
    with pytest.raises(ConfigError, match="holds no block formats"):
        LLM(str(tmp_path), weight_format="native")
