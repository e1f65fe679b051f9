"""Tokenizers of the packaged models, loaded once."""

from __future__ import annotations

import pytest
from tests.real_models import real_model
from text_samples import REAL_MODELS

from nonet.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session", params=REAL_MODELS)
def real_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(real_model(request.param))


@pytest.fixture(scope="session")
def smollm2() -> Tokenizer:
    return load_tokenizer(real_model("smollm2"))
