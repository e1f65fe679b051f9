"""Logits of every family, with tiny random weights, against Hugging Face transformers in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nonet.engine.scorer import Scorer
from tests.model.families import CONFIGS, save

TOLERANCE = 1e-3


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_equal_transformers(name: str, kernels: str, tmp_path: Path) -> None:
    oracle = save(name, tmp_path)
    token_ids = torch.randint(0, 199, (1, 150), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = oracle(token_ids).logits[0]
    ours = Scorer(tmp_path, kernels=kernels).logits(token_ids[0].tolist())
    assert expected.abs().max() > 0.5, "logits this small would hide a mistake"
    assert (ours - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("name", ["llama-llama3", "gemma3", "mistral"])
def test_chunks_do_not_change_logits(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    token_ids = torch.randint(0, 199, (120,), generator=torch.Generator().manual_seed(6)).tolist()
    model = Scorer(tmp_path)
    whole = model.logits(token_ids)
    for chunks in ([1] * 120, [7, 1, 16, 31], [64, 1, 1]):
        assert (model.logits(token_ids, chunks) - whole).abs().max().item() < 1e-4


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    oracle = save("qwen3", tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    token_ids = list(range(3, 60))
    with torch.no_grad():
        expected = oracle(torch.tensor([token_ids])).logits[0]
    assert (Scorer(tmp_path).logits(token_ids) - expected).abs().max().item() < TOLERANCE


def test_the_check_rejects_a_shifted_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: rotary positions off by one in keys only would pass a test that looks at shapes."""
    from nonet.layers import rotary

    oracle = save("llama", tmp_path)
    token_ids = list(range(3, 60))
    with torch.no_grad():
        expected = oracle(torch.tensor([token_ids])).logits[0]
    right = rotary.inverse_frequencies

    def wrong(*arguments: object) -> tuple[torch.Tensor, float]:
        frequencies, factor = right(*arguments)  # type: ignore[arg-type]
        return frequencies.roll(1), factor

    monkeypatch.setattr(rotary, "inverse_frequencies", wrong)
    assert (Scorer(tmp_path).logits(token_ids) - expected).abs().max().item() > TOLERANCE
