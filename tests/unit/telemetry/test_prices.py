"""Prices in LiteLLM's format: what is read, what follows from the rest, and exact sums."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.core.errors import ConfigError
from nonet.telemetry.prices import PICOS, Rates, Tokens, as_money, picos_of, read_rates

# As in LiteLLM's table: a string where a number is not wanted, fields that do not concern us.
ENTRY: dict[str, Any] = {
    "litellm_provider": "anthropic",
    "mode": "chat",
    "max_tokens": 8192,
    "input_cost_per_token": 3e-06,
    "output_cost_per_token": 1.5e-05,
    "cache_creation_input_token_cost": 3.75e-06,
    "cache_creation_input_token_cost_above_1hr": 6e-06,
    "cache_read_input_token_cost": 3e-07,
}


def table(folder: Path, **entry: Any) -> Path:
    path = folder / "prices.json"
    path.write_text(json.dumps({"sample_spec": {"mode": "chat"}, "m": entry}))
    return path


def test_all_prices_given(tmp_path: Path) -> None:
    rates = read_rates(table(tmp_path, **ENTRY), "m")["standard"]
    micro = 10**12  # attos
    assert rates == Rates(3 * micro, 15 * micro, 3 * micro // 10, 15 * micro // 4, 6 * micro)


def test_prices_that_follow(tmp_path: Path) -> None:
    path = table(tmp_path, input_cost_per_token=4e-8, output_cost_per_token=1e-7)
    rates = read_rates(path, "m")
    nano = 10**9
    assert rates["standard"] == Rates(40 * nano, 100 * nano, 4 * nano, 50 * nano, 80 * nano)
    assert rates["batch"] == Rates(20 * nano, 50 * nano, 2 * nano, 25 * nano, 40 * nano)


def test_batch_prices_of_the_table_win(tmp_path: Path) -> None:
    path = table(tmp_path, **ENTRY, input_cost_per_token_batches=1e-6)
    batch = read_rates(path, "m")["batch"]
    assert (batch.input, batch.output) == (10**12, 75 * 10**11)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"input_cost_per_token": 1e-6}, "give both"),
        ({**ENTRY, "input_cost_per_token": "free"}, "input_cost_per_token is 'free'"),
        ({**ENTRY, "output_cost_per_token": -1}, "0 or more"),
        ({**ENTRY, "input_cost_per_token": 1.234567890123e-9}, "more than 18 decimals"),
    ],
)
def test_useless_entries(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rates(table(tmp_path, **entry), "m")


def test_useless_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prices for 'n'"):
        read_rates(table(tmp_path, **ENTRY), "n")
    for text in ("[]", "{", "NaN"):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_rates(path, "m")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rates(tmp_path / "none.json", "m")


COUNT = st.integers(0, 10_000_000)
PRICE = st.integers(0, 10**14)


@settings(deadline=None)
@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.tuples(PRICE, PRICE, PRICE, PRICE, PRICE))
def test_cost_equals_decimals(
    plain: int, cached: int, short: int, long: int, output: int, prices: tuple[int, ...]
) -> None:
    tokens = Tokens(
        prompt=plain + cached + short + long,
        cached=cached,
        written_5m=short,
        written_1h=long,
        output=output,
    )
    counts = (plain, output, cached, short, long)
    exact = sum(
        (Decimal(count) * Decimal(price).scaleb(-18) for count, price in zip(counts, prices, strict=True)),
        Decimal(0),
    )  # fmt: skip
    rounded = exact.quantize(Decimal(1).scaleb(-12), ROUND_HALF_EVEN)
    assert Rates(*prices).cost(tokens) == int(rounded * PICOS)


@settings(deadline=None)
@given(st.integers(-(10**20), 10**20))
def test_money_reads_back(picos: int) -> None:
    text = as_money(picos)
    assert Decimal(text) * PICOS == picos
    assert "E" not in text.upper()
    if picos >= 0:
        assert picos_of(text, "x") == picos


def test_money_that_is_none() -> None:
    for text in ("", "much", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="give an amount"):
            picos_of(text, "money_per_day")
