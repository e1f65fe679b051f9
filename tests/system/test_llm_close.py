"""What is closed is given back, also while somebody still holds the object."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from nonet.core.errors import UnavailableError
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save
from tests.system.tiny_text import write_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def test_a_closed_model_gives_its_memory_back_and_says_so(tmp_path: Path) -> None:
    save("llama-bytes", tmp_path)
    write_tokenizer(tmp_path)
    llm = LLM(str(tmp_path), device="cpu", max_model_len=64, num_blocks=8)
    assert len(llm.generate([[5, 6, 7]], GREEDY)[0].outputs[0].token_ids) == 4
    runner = weakref.ref(llm.engine.parts.executor.runner)
    assert runner() is not None
    llm.close()
    llm.close()  # a second time does no harm
    assert runner() is None
    with pytest.raises(UnavailableError, match="is closed; make another LLM"):
        llm.generate([[5, 6, 7]], GREEDY)
