"""Adapter directories: what PEFT wrote is read to the last bit, and everything else is refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nonet.core.errors import ModelFileError, UnsupportedModelError, UserError
from nonet.lora.adapter import Adapter, LayerShape
from nonet.lora.checkpoint import read_adapter
from nonet.lora.settings import read_settings

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["plain", "all_linear_rslora", "regex", "patterns", "one_layer"]
SHAPES = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
FUSED = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]
LAYERS = [
    LayerShape(
        tuple(f"model.layers.{number}.{name}" for name in names),
        tuple(SHAPES[name][0] for name in names),
        SHAPES[names[0]][1],
    )
    for number in range(2)
    for names in FUSED
]


def read(folder: Path, max_rank: int = 16, dtype: torch.dtype = torch.float32) -> Adapter:
    return read_adapter("it", folder, LAYERS, max_rank=max_rank, dtype=dtype)


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What the adapter adds to each matrix; those to which it adds nothing are left out."""
    found: dict[str, torch.Tensor] = {}
    for layer, factors in zip(LAYERS, adapter.layers, strict=True):
        start = 0
        for part, (name, end) in enumerate(zip(layer.names, layer.ends, strict=True)):
            if factors is not None:
                delta = factors.second[:, start:end].T @ factors.first[part]
                if delta.any():
                    found[name] = delta
            start = end
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_golden_adapters_add_what_peft_says(kind: str) -> None:
    expected = load_file(GOLDEN / kind / "deltas.safetensors")
    found = deltas(read(GOLDEN / kind))
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, atol=1e-5, rtol=1e-5)


def test_the_id_is_the_content() -> None:
    plain = read(GOLDEN / "plain")
    assert plain.adapter_id.startswith("it@")
    assert plain.adapter_id == read(GOLDEN / "plain").adapter_id
    assert plain.adapter_id != read(GOLDEN / "plain", dtype=torch.bfloat16).adapter_id
    assert plain.adapter_id != read(GOLDEN / "one_layer").adapter_id


def test_the_largest_rank_is_told() -> None:
    assert read_settings(GOLDEN / "patterns").largest_rank == 4
    with pytest.raises(
        UnsupportedModelError, match="rank is 4 and max_lora_rank is 3; start with max_lora_rank 4"
    ):
        read(GOLDEN / "patterns", max_rank=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the plain golden adapter, to be spoilt."""
    path = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "plain", path)
    return path


def settings(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


REFUSED = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
    ({"use_dora": True}, "use_dora is set, and DoRA rescales the base weights"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is set, and it replaces whole layers"),
    ({"bias": "all"}, "bias is 'all'; only adapters without biases"),
    ({"lora_bias": True}, "lora_bias is set, and it has biases"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
    ({"target_parameters": ["experts.down"]}, "target_parameters is set"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
    ({"use_qalora": True}, "use_qalora is set"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base weights"),
    ({"use_something_new": {"a": 1}}, "use_something_new is set, and nonet does not know it"),
    ({"rank_pattern": {"layers.(0|1)+.q_proj": 4}}, "has the pattern"),
    ({"r": 0}, "r is 0; a number from 1"),
    ({"r": "4"}, "r is '4'; a whole number"),
    ({"lora_alpha": None}, "does not give lora_alpha"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ({"target_modules": []}, "target_modules is empty"),
    ({"target_modules": [3]}, "target_modules holds something that is no name"),
    ({"layers_to_transform": ["x"]}, "layers_to_transform holds something"),
    ({"r": 8}, "has shape (4, 24); with rank 8"),
    ({"rank_pattern": {"v_proj": 2}}, "must be (2, 16)"),
    ({"target_modules": ["q_proj", "v_proj", "down_proj", "k_proj"]}, "lacks model.layers.0.self_attn.k_proj"),
    ({"target_modules": ["q_proj", "v_proj"]}, "holds model.layers.0.mlp.down_proj, which does not agree"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_settings_are_refused_with_a_reason(
    folder: Path, changes: dict[str, object], says: str
) -> None:
    settings(folder, **changes)
    with pytest.raises(UserError) as caught:
        read(folder)
    assert says in str(caught.value)


def test_what_does_not_matter_is_ignored(folder: Path) -> None:
    before = read(folder).adapter_id
    settings(
        folder, lora_dropout=0.1, base_model_name_or_path="x", init_lora_weights="gaussian", revision="main"
    )  # fmt: skip
    assert read(folder).adapter_id == before


Spoil = Callable[[dict[str, torch.Tensor]], None]
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def drop(name: str) -> Spoil:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: torch.Tensor) -> Spoil:
    return lambda tensors: tensors.update({name: tensor})


SPOILT: list[tuple[Spoil, str]] = [
    (drop(Q.format("A")), "q_proj has no lora_A"),
    (drop(Q.format("B")), "q_proj has no lora_B"),
    (put(Q.format("A"), torch.ones(4, 15)), "must be (4, 16)"),
    (put(Q.format("B"), torch.ones(8, 4)), "must be (16, 4)"),
    (put(Q.format("A"), torch.ones(4, 16, dtype=torch.int32)), "has dtype I32"),
    (put(Q.format("A"), torch.full((4, 16), torch.nan)), "not finite"),
    (put(Q.format("B"), torch.full((16, 4), torch.inf)), "not finite"),
    (put("base_model.model.lm_head.lora_A.weight", torch.ones(4, 16)), "adapts none of this model's linear layers"),
    (put("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(4, 16)), "adapts none"),
    (put("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", torch.ones(4, 16)), "adapts none"),
    (put("base_model.model.model.layers.0.self_attn.q_proj.weight", torch.ones(4, 16)), "adapts none"),
    (put("model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(4, 16)), "two tensors are lora_A"),
    (lambda tensors: tensors.clear(), "lacks"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), SPOILT)
def test_tensors_are_refused_with_a_reason(folder: Path, spoil: Spoil, says: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        read(folder)
    assert says in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    with pytest.raises(ModelFileError, match="more than an adapter of rank 4"):
        read(folder)
    with (folder / "adapter_config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="larger than"):
        read(folder)


def test_broken_files_are_refused(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"truncated or corrupt|not the JSON"):
            read(folder)
    file.unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="safetensors files only"):
        read(folder)
    (folder / "adapter_config.json").write_text("{not json")
    with pytest.raises(ModelFileError, match="not the JSON"):
        read(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelFileError, match="a directory that PEFT has written"):
        read(folder)


def test_a_pattern_for_ever_is_never_run(folder: Path) -> None:
    """A regular expression that would take longer than the sun burns; the tensors tell what is adapted."""
    settings(folder, target_modules="(a|a)*" * 30 + "(.*)*$x")
    assert len(deltas(read(folder))) == 6


def test_names_of_multimodal_models_and_of_older_files(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    expected = deltas(read(folder))
    tensors = load_file(file)
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        plain = name.replace("model.model.layers", "model.model.language_model.layers")
        renamed[plain.replace(".weight", ".default.weight")] = tensor
    save_file(renamed, file)
    found = deltas(read(folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], delta) for name, delta in expected.items())
