"""A semantic cache that is started, and closed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.semantic_bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    await one.layer.start()
    yield one
    await one.layer.close()
