"""The whole gateway against books kept apart; `python benchmarks/ledger_oracle.py` does it with 100,000 requests."""

from __future__ import annotations

import copy
from decimal import Decimal
from pathlib import Path

import pytest
from tests.ledger_oracle import KINDS, compare, run


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_ledger_equals_the_books(tmp_path: Path, seed: int) -> None:
    books, told = await run(tmp_path, 1000, seed)
    assert set(books.kinds) == set(KINDS)
    compare(books, told)
    for spoilt in ("cost", "saved"):  # a pico more is noticed
        wrong = copy.deepcopy(told)
        name = next(iter(wrong[spoilt]))
        wrong[spoilt][name] += Decimal("0.000000000001")
        with pytest.raises(AssertionError):
            compare(books, wrong)
    with pytest.raises(AssertionError):
        compare(books, {**told, "rows": told["rows"] + 1})
