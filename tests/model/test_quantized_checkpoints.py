"""Tiny Llamas on disk in every published layout, run end to end, against transformers with the dequantised weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from nonet.config.load import from_options
from nonet.config.memory import weight_bytes
from nonet.core.errors import ConfigError, ModelFileError, UnsupportedModelError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.engine.prepare import resolve_config
from nonet.engine.scorer import Scorer
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.quant.formats import WEIGHT_FORMATS
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


def compressed(
    kind: str, ignore: list[str], inputs: dict[str, object] | None = None, **weights: object
) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
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
    "ct-float8-dynamic": (
        compressed("float-quantized", ["re:.*lm_head"], {"type": "float", "num_bits": 8, "dynamic": True},
                   type="float", num_bits=8, strategy="channel"),
        float8("weight_scale", "output"),
    ),
    "fp8-tensor": (FP8 | {"activation_scheme": "static"}, float8("weight_scale", "tensor")),
    "fp8-output": (FP8, float8("weight_scale", "output")),
    "fp8-blocks": (FP8 | {"weight_block_size": [32, 16]}, float8("weight_scale_inv", "block")),
}  # fmt: skip
# Floats that inputs meet unrounded, blocks that no kernel knows, scattered groups.
WITHOUT_CODES = ("ct-float8", "fp8-blocks", "gptq-act-order")
# Floats that stay as they are, and are met by inputs in 8 bits.
FLOATS = ("ct-float8-dynamic", "fp8-tensor", "fp8-output")


def publish(
    name: str, folder: Path, as_codes: bool = False, model: str = "llama"
) -> PreTrainedModel:
    """Rewrite a tiny model's directory in the layout; the oracle has the weights that the layout means."""
    config, write = LAYOUTS[name]
    oracle = save(model, folder)
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
    if as_codes and name in FLOATS:
        for module_name, module in oracle.named_modules():
            if module_name.endswith("_proj"):
                module.register_forward_pre_hook(with_rounded_inputs)
    return oracle


def with_rounded_inputs(module: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """A scale for each token, its largest number at 448."""
    scale = given[0].abs().amax(-1, keepdim=True) / 448
    return ((given[0] / scale).to(torch.float8_e4m3fn).float() * scale,)


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
    codes = source.load_codes("model.layers.0.self_attn.q_proj.weight")
    assert (codes is None) == (name in WITHOUT_CODES)
    assert source.load_codes("lm_head.weight") is None
    assert source.format == f"safetensors, {declared['quant_method']}"
    spec = read_spec(tmp_path)
    assert spec.code_bits == (codes.bits if isinstance(codes, GroupwiseTensor) else None)
    assert spec.stores_float8 == isinstance(codes, Float8Tensor) == (name in FLOATS)
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


@pytest.mark.parametrize(
    ("name", "weight_format"),
    [("gptq", "native"), ("fp8-blocks", "dense"), ("fp8-output", "native")],
)
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


def test_floats_in_8_bits_need_kernels_that_have_them(tmp_path: Path) -> None:
    publish("fp8-tensor", tmp_path)
    given = from_options({"model": str(tmp_path), "weight_format": "native", "device": "cpu"})
    plan, _ = resolve_config(given)
    assert plan.kernels == "reference"
    assert "8-bit floats" in plan.reasons["kernels"]
    with pytest.raises(
        ConfigError, match="which the native CPU kernels have not; use kernels auto"
    ):
        LLM(str(tmp_path), weight_format="native", kernels="native", device="cpu")


def test_the_plan_counts_a_byte_for_each_float_that_stays(tmp_path: Path) -> None:
    """By kernels that keep them, as those of a GPU do; others make them wide."""
    oracle = publish("fp8-output", tmp_path)
    linears = [w for n, w in oracle.named_parameters() if n.endswith("_proj.weight")]
    tables = [w for n, w in oracle.named_parameters() if "embed" in n or "lm_head" in n]
    scales = sum(4 * w.shape[0] for w in linears)  # all have at most 128 inputs
    exact = sum(w.numel() for w in linears) + scales + 2 * sum(w.numel() for w in tables)
    held, spec = WEIGHT_FORMATS.build("native"), read_spec(tmp_path)
    assert weight_bytes(spec, "bfloat16", held, "triton", str(tmp_path)) == exact
    wide = weight_bytes(spec, "bfloat16", held, "reference", str(tmp_path))
    assert wide == 2 * spec.num_parameters


def test_native_is_refused_where_nothing_is_stored_as_codes(tmp_path: Path) -> None:
    publish("ct-float8", tmp_path)
    with pytest.raises(ConfigError, match="holds no block formats"):
        LLM(str(tmp_path), weight_format="native")
