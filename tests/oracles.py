"""Packaged models as Hugging Face transformers reads them, which takes many times longer than reading them here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

__all__ = ["oracle", "quick_gguf"]


@lru_cache(maxsize=1)  # the last one is kept: modules that use the same model follow each other
def oracle(path: Path) -> PreTrainedModel:
    """The model of a GGUF file in float32."""
    # The native kernels have left torch one thread; OMP_NUM_THREADS is what tests at the same time leave to this one.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    with quick_gguf():
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
    return model.eval()


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Meanwhile transformers, which opens a GGUF file anew for its configuration, its weights and its tokenizer, gets
    one reader for all. What is read, and by whom, stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lru_cache(maxsize=1)(_ArrayReader))
        yield


class _ArrayReader(gguf.GGUFReader):
    """Cuts a plain array: the subclass that a mapped file is by default makes each of a million cuts several times as
    slow."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = np.asarray(mapped)
