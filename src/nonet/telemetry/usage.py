"""Questions to the ledger: who used what, what it cost, and what each technique saved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import InvalidRequestError
from nonet.telemetry.ledger import LedgerRow
from nonet.telemetry.prices import as_money

__all__ = [
    "GROUPS",
    "Span",
    "export_rows",
    "savings_report",
    "span_of",
    "spent_picos",
    "usage_report",
]

# What a report can be split by, and the place of each in the rows of the query below.
GROUPS = ("day", "tenant", "key", "model", "route", "tier", "cache", "finish")

# A sum of picos could overflow 64 bits after nine million units of money: millions and rest are summed apart.
TOTALS = """
SELECT date(at_s, 'unixepoch'), tenant, key_id, model, route, tier, cache, finish,
       count(*), sum(prompt_tokens), sum(cached_tokens), sum(written_5m_tokens + written_1h_tokens),
       sum(output_tokens), sum(cost_picos / 1000000), sum(cost_picos % 1000000)
FROM ledger WHERE at_s >= ? AND at_s < ? AND (? IS NULL OR tenant = ?)
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""
SAVED = """
SELECT json_extract(value, '$[0]'), count(*), sum(json_extract(value, '$[1]')),
       sum(json_extract(value, '$[2]')), sum(json_extract(value, '$[3]')),
       sum(json_extract(value, '$[4]') / 1000000), sum(json_extract(value, '$[4]') % 1000000)
FROM ledger, json_each(ledger.savings)
WHERE savings != '' AND at_s >= ? AND at_s < ? AND (? IS NULL OR tenant = ?)
GROUP BY 1 ORDER BY 1
"""
SPENT = """
SELECT key_id, sum(cost_picos / 1000000), sum(cost_picos % 1000000)
FROM ledger WHERE at_s >= ? GROUP BY key_id
"""
EXPORT = """
SELECT at_s, request_id, once, tenant, key_id, model, route, tier, cache, finish, prompt_tokens, cached_tokens,
       written_5m_tokens, written_1h_tokens, output_tokens, seconds, cost_picos, savings
FROM ledger WHERE at_s >= ? AND at_s < ? AND (? IS NULL OR tenant = ?) ORDER BY id
"""
NUMBERS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "written_tokens",
    "output_tokens",
    "cost_picos",
)


@dataclass(frozen=True, slots=True)
class Span:
    """Which rows: Unix times [start, end), and one tenant or all."""

    start_s: float = 0.0
    end_s: float = 1e12
    tenant: str | None = None

    @property
    def values(self) -> tuple[float, float, str | None, str | None]:
        return (self.start_s, self.end_s, self.tenant, self.tenant)


def span_of(start: str | None, end: str | None, tenant: str | None) -> Span:
    """A span from texts; without them, all of the ledger.

    >>> span_of("1970-01-02", "172800", None)
    Span(start_s=86400.0, end_s=172800.0, tenant=None)
    """
    whole = Span()
    return Span(
        whole.start_s if start is None else _time(start, "start"),
        whole.end_s if end is None else _time(end, "end"),
        tenant,
    )


def usage_report(
    connection: sqlite3.Connection, span: Span, by: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One line per distinct values of `by`, with counts of requests and tokens, and the cost as a decimal."""
    for name in by:
        if name not in GROUPS:
            raise InvalidRequestError(
                f"usage cannot be split by {name[:50]!r}. {did_you_mean(name[:50], list(GROUPS))}",
                "by",
            )
    places = [GROUPS.index(name) for name in by]
    lines: dict[tuple[str, ...], list[int]] = {}
    for row in connection.execute(TOTALS, span.values):
        counts = [*row[8:13], row[13] * 1_000_000 + row[14]]
        line = lines.setdefault(tuple(row[place] for place in places), [0] * len(NUMBERS))
        for place, count in enumerate(counts):
            line[place] += count
    return [_line(by, names, counts) for names, counts in sorted(lines.items())]


def savings_report(connection: sqlite3.Connection, span: Span) -> list[dict[str, Any]]:
    """One line per technique: requests it helped, tokens and seconds it spared, and what they would have cost."""
    return [
        {
            "technique": technique,
            "requests": requests,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "seconds": round(seconds, 3),
            "money": as_money(millions * 1_000_000 + rest),
        }
        for technique, requests, prompt_tokens, output_tokens, seconds, millions, rest in (
            connection.execute(SAVED, span.values)
        )
    ]


def spent_picos(connection: sqlite3.Connection, since_s: float) -> dict[str, int]:
    """What each key has spent since."""
    rows = connection.execute(SPENT, (since_s,))
    return {key_id: millions * 1_000_000 + rest for key_id, millions, rest in rows}


def export_rows(connection: sqlite3.Connection, span: Span) -> Iterator[LedgerRow]:
    """The rows themselves, oldest first."""
    return (LedgerRow(*row) for row in connection.execute(EXPORT, span.values))


def _line(by: Sequence[str], names: tuple[str, ...], counts: list[int]) -> dict[str, Any]:
    numbers: dict[str, Any] = dict(zip(NUMBERS, counts, strict=True))
    return {
        **dict(zip(by, names, strict=True)),
        **numbers,
        "cost": as_money(numbers["cost_picos"]),
    }


def _time(text: str, param: str) -> float:
    """Unix seconds, or an ISO date or time, UTC where it does not say."""
    try:
        if text.replace(".", "", 1).isdigit() and text.isascii() and "-" not in text:
            return float(text)
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"{param} is {text[:50]!r}; give Unix seconds or a date such as 2026-11-23", param
        ) from None
