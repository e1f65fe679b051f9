"""Token ids of the packaged models against recorded truth.

The truth of golden_ids.json: SmolLM2 and Qwen are transformers' GGUF conversion, mended where it departs from the
models' own tokenizer (it forgets SmolLM2's splitting of digits and Qwen's normal form C); Gemma is llama.cpp, which
cuts out runs of spaces as SentencePiece does, where transformers merges them. `test_tokenizer_huggingface` compares the
record with transformers, live.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path

import pytest
from tests.real_models import real_model
from text_samples import REAL_MODELS, text_samples

from nonet.text.tokenizer import Tokenizer, load_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text("utf-8"))


def digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


@pytest.mark.models
@pytest.mark.parametrize("model", REAL_MODELS)
def test_ids_equal_the_record(model: str) -> None:
    tokenizer = load_tokenizer(real_model(model))
    for text, ids in GOLDEN[model]["texts"].items():
        assert tokenizer.encode(text) == ids, repr(text)
    found = {
        group: digest(tokenizer.encode_batch(texts)) for group, texts in text_samples().items()
    }
    assert found == GOLDEN[model]["digests"]


@pytest.mark.models
def test_encoded_text_decodes_to_itself(real_tokenizer: Tokenizer) -> None:
    for text in [text for texts in text_samples().values() for text in texts]:
        if not all(char.isprintable() or char in "\t\n\r " for char in text):
            continue  # SmolLM2 has no tokens for some control characters and drops them
        ids = real_tokenizer.encode(text, add_special=False)
        back = real_tokenizer.decode(ids, skip_special=False)
        assert unicodedata.normalize("NFC", back) == unicodedata.normalize("NFC", text)
