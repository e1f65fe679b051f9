"""Where tests find the packaged real models, and the one sentence with which they skip when one is missing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from nonet.core.errors import UserError
from nonet.weights.packaged import cached_model

__all__ = ["real_model"]

CATALOGUE = Path(__file__).parent / "models.toml"


def real_model(name: str) -> Path:
    """The file of a packaged model, or a skip; tests never download."""
    path = _find(name)
    if path is None:
        pytest.skip(f"the packaged model {name} is not in the cache")
    return path


@lru_cache
def _find(name: str) -> Path | None:
    try:
        return cached_model(name, catalogue_file=CATALOGUE)
    except UserError:
        return None
