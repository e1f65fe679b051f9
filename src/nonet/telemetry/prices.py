"""What tokens cost: a price table in LiteLLM's JSON format, and exact arithmetic on it.

Prices are decimals per token. A cost is a whole number of picos, 10^-12 of the table's currency: sums of picos are
exact, and a sum over many requests does not depend on their order. A price that the table leaves out follows from the
others: reading cached tokens costs a tenth of input, writing them 1.25 times (kept 5 minutes) or twice (an hour) as
much, and a batch half of everything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError

__all__ = ["FREE", "PICOS", "Rates", "Tokens", "as_money", "picos_of", "read_rates"]

PICOS = 10**12  # in one unit of money
ATTOS_PER_PICO = 10**6
ATTO = Decimal(1).scaleb(-18)

CACHE_READ = Decimal("0.1")
CACHE_WRITE_5M = Decimal("1.25")
CACHE_WRITE_1H = Decimal("2")
BATCH = Decimal("0.5")


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of one request by kind. `prompt` counts all of the prompt, the cached and written ones included."""

    prompt: int = 0
    cached: int = 0  # of the prompt, read from the prefix cache
    written_5m: int = 0  # of the prompt, kept on request
    written_1h: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Attos (10^-18) per token of one model and tier."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    def cost(self, tokens: Tokens) -> int:
        """Picos, rounded half to even once for the whole request.

        >>> Rates(input=2 * 10**12, output=10**13).cost(Tokens(prompt=100, output=10))
        300000000
        """
        plain = tokens.prompt - tokens.cached - tokens.written_5m - tokens.written_1h
        attos = (
            plain * self.input
            + tokens.output * self.output
            + tokens.cached * self.cache_read
            + tokens.written_5m * self.cache_write_5m
            + tokens.written_1h * self.cache_write_1h
        )
        return _rounded(attos)


FREE = Rates()


def read_rates(path: Path, model: str) -> dict[str, Rates]:
    """Rates of `model` by service class; ConfigError when the file or the model's entry is no use."""
    try:
        table = json.loads(path.read_text("utf-8"), parse_float=Decimal, parse_int=Decimal)
    except (OSError, ValueError) as error:
        raise ConfigError(f"price_table {str(path)!r} cannot be read: {error}") from None
    if not isinstance(table, dict) or not isinstance(table.get(model), dict):
        known = sorted(table) if isinstance(table, dict) else []
        raise ConfigError(
            f"price_table {str(path)!r} has no prices for {model!r}. "
            f"{did_you_mean(model, known[:20])}; add it, or name the model with served_name"
        )
    entry = table[model]
    where = f"price_table {str(path)!r}, {model}"
    return {
        "interactive": _rates(entry, where, "_priority", Decimal(1)),
        "standard": _rates(entry, where, "", Decimal(1)),
        "batch": _rates(entry, where, "_batches", BATCH),
    }


def as_money(picos: int) -> str:
    """A decimal without an exponent.

    >>> as_money(1_500_000), as_money(-2 * PICOS), as_money(0)
    ('0.0000015', '-2', '0')
    """
    sign, size = ("-", -picos) if picos < 0 else ("", picos)
    whole, part = divmod(size, PICOS)
    return f"{sign}{whole}.{part:012d}".rstrip("0").rstrip(".")


def picos_of(money: str, where: str) -> int:
    """Picos of a decimal as an operator writes it; ConfigError when it is none."""
    try:
        value = Decimal(money)
        picos = int((value * PICOS).to_integral_value())
    except (ArithmeticError, ValueError):
        raise ConfigError(f"{where} is {money!r}; give an amount such as 2.50") from None
    if picos < 0:
        raise ConfigError(f"{where} is {money!r}; give an amount of 0 or more")
    return picos


def _rates(entry: dict[str, Any], where: str, suffix: str, discount: Decimal) -> Rates:
    """The entry's own prices with `suffix`, else its plain ones times `discount`."""

    def price(name: str) -> Decimal | None:
        own = _number(entry, name + suffix, where)
        if own is not None:
            return own
        plain = _number(entry, name, where)
        return None if plain is None else plain * discount

    paid_in, paid_out = price("input_cost_per_token"), price("output_cost_per_token")
    if paid_in is None or paid_out is None:
        raise ConfigError(
            f"{where}: input_cost_per_token and output_cost_per_token are needed; give both"
        )
    read = price("cache_read_input_token_cost")
    short = price("cache_creation_input_token_cost")
    long = price("cache_creation_input_token_cost_above_1hr")
    return Rates(
        input=_attos(paid_in, where),
        output=_attos(paid_out, where),
        cache_read=_attos(paid_in * CACHE_READ if read is None else read, where),
        cache_write_5m=_attos(paid_in * CACHE_WRITE_5M if short is None else short, where),
        cache_write_1h=_attos(paid_in * CACHE_WRITE_1H if long is None else long, where),
    )


def _number(entry: dict[str, Any], name: str, where: str) -> Decimal | None:
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, Decimal) or not value.is_finite() or value < 0:
        raise ConfigError(f"{where}: {name} is {value!r}; give a number of 0 or more")
    return value


def _attos(price: Decimal, where: str) -> int:
    attos = price / ATTO
    if attos != attos.to_integral_value():
        raise ConfigError(
            f"{where}: {price} per token has more than 18 decimals; such a price cannot be booked exactly"
        )
    return int(attos)


def _rounded(attos: int) -> int:
    picos, rest = divmod(attos, ATTOS_PER_PICO)
    half = ATTOS_PER_PICO // 2
    return picos + (rest > half or (rest == half and picos % 2 == 1))
