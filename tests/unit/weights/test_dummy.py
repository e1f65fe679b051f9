"""Made-up weights: complete for every family, the same for the same seed and name, quick at any size."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.weights.dummy import DummySource

SPEC = ModelSpec(
    family="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    norm_eps=1e-5,
    rope=RopeSpec(1e4),
    dtype="float32",
)


def test_depends_on_seed_and_name_alone():
    one, again, other = DummySource(SPEC, 1), DummySource(SPEC, 1), DummySource(SPEC, 2)
    for name in one.names():
        tensor = one.load(name)
        assert tuple(tensor.shape) == one.shape(name)
        assert tensor.equal(again.load(name))
        assert not tensor.equal(other.load(name))
        assert one.load_codes(name) is None
    layers = [one.load(f"model.layers.{i}.mlp.up_proj.weight") for i in range(2)]
    assert not layers[0].equal(layers[1])


def test_values_look_like_weights():
    spec = dataclasses.replace(SPEC, vocab_size=50_000)
    table = DummySource(spec).load("model.embed_tokens.weight")
    assert float(table.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(table.mean())) < 1e-3
    assert len(torch.unique(table, dim=0)) == spec.vocab_size  # no two rows tie
    narrow = DummySource(dataclasses.replace(spec, initializer_range=1e-3))
    assert float(narrow.load("lm_head.weight").std()) == pytest.approx(1e-3, rel=0.02)
    norm = DummySource(SPEC).load("model.norm.weight")
    assert abs(float(norm.mean()) - 1) < 0.05
    offset = dataclasses.replace(SPEC, norm_offset=True)
    assert abs(float(DummySource(offset).load("model.norm.weight").mean())) < 0.05


def test_large_matrices_are_quick():
    spec = dataclasses.replace(SPEC, hidden_size=4096, intermediate_size=14336, dtype="bfloat16")
    start = time.process_time()
    tensor = DummySource(spec).load("model.layers.0.mlp.up_proj.weight")
    assert time.process_time() - start < 2.0
    assert tensor.dtype == torch.bfloat16


FAMILIES = {
    "LlamaConfig": {"attention_bias": True, "mlp_bias": True},
    "MistralConfig": {},
    "Qwen2Config": {"tie_word_embeddings": True},
    "Qwen3Config": {"head_dim": 16},
    "Gemma3TextConfig": {"head_dim": 16},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_are_those_of_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    from nonet.weights.spec import read_spec

    config = getattr(transformers, name)(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        **FAMILIES[name],
    )
    config.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    ours = DummySource(read_spec(tmp_path))
    assert {key: ours.shape(key) for key in ours.names()} == theirs
