"""A semantic cache that is started, and closed afterwards; a tokenizer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.gateway_fakes import tiny_tokenizer
from tests.semantic_bench import Bench

from nonet.text.tokenizer import Tokenizer


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    await one.layer.start()
    yield one
    await one.layer.close()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
