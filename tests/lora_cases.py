"""Adapters that PEFT itself makes, writes and merges, over tiny checkpoints that transformers wrote."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from transformers import PreTrainedModel

__all__ = ["ALL", "adapt", "config", "write_many"]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**changes: object) -> peft.LoraConfig:
    """Rank 4 on every linear layer, with a scale that is not one."""
    given: dict[str, object] = {"r": 4, "lora_alpha": 6, "target_modules": ALL, **changes}
    return peft.LoraConfig(task_type="CAUSAL_LM", **given)  # type: ignore[arg-type]


def adapt(
    base: PreTrainedModel, settings: peft.LoraConfig, folder: Path, seed: int = 0
) -> PreTrainedModel:
    """Write an adapter with random weights to the folder; returns a copy of the base with it merged, by PEFT."""
    wrapped = peft.get_peft_model(copy.deepcopy(base), settings)
    _randomise(wrapped, seed)
    wrapped.save_pretrained(folder)
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged.eval()


def write_many(base: PreTrainedModel, settings: peft.LoraConfig, folders: Sequence[Path]) -> None:
    """An adapter of its own in each folder."""
    wrapped = peft.get_peft_model(copy.deepcopy(base), settings)
    for seed, folder in enumerate(folders):
        _randomise(wrapped, seed)
        wrapped.save_pretrained(folder)


def _randomise(wrapped: peft.PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:  # B starts at zero in PEFT
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
