"""Packaged models as Hugging Face transformers reads them, which takes many times longer than reading them here."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

__all__ = ["oracle"]


@lru_cache(maxsize=1)  # the last one is kept: modules that use the same model follow each other
def oracle(path: Path) -> PreTrainedModel:
    """The model of a GGUF file in float32."""
    # The native kernels have left torch one thread; OMP_NUM_THREADS is what tests at the same time leave to this one.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()
