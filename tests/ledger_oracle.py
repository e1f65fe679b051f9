"""The whole gateway against books kept apart: every request is known before it is sent, and added up in decimals.

Requests are drawn by seed: streamed, whole, left after some steps, answered from the cache, and lines of a batch, some
of which are answered a second time as after a crash. The books know the price table and the rules, and nothing of the
product's arithmetic; the ledger must say the same to the last pico, and so must what each technique saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import msgspec

from nonet.gateway.answer import Ask, Caller
from nonet.gateway.bookkeeper import Bookkeeper
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.pipeline import Pipeline
from nonet.store.batch_records import BatchRecord, Line, LineState, LineUsage, SettledLine
from nonet.store.batches import BatchStore
from nonet.store.database import Database
from nonet.store.files import FileRecord, FileStore
from nonet.telemetry.ledger import Ledger, LedgerRow, insert_rows
from nonet.telemetry.prices import read_rates
from nonet.telemetry.usage import Span, export_rows, savings_report, usage_report
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, site, tiny_tokenizer

__all__ = ["Books", "Plan", "compare", "run"]

KINDS = ("stream", "whole", "left", "cached", "batch", "batch_twice", "batch_cached")
CACHED = 16  # tokens that the engine says it had in its prefix cache
HIT_PERCENT = 10
AT_ONCE = 250
BATCH_ID = "batch_1"
# Prices with many digits, so that rounding matters.
PRICES = {
    "input_cost_per_token": "0.00000015000000025",
    "output_cost_per_token": "0.00000060000000125",
    "cache_read_input_token_cost": "0.00000000000075025",
    "cache_creation_input_token_cost": "0.0000001875",
    "cache_creation_input_token_cost_above_1hr": "0.0000003",
    "input_cost_per_token_batches": "0.000000075000000375",
}
RATE = {name: Decimal(price) for name, price in PRICES.items()}


@dataclass(frozen=True)
class Plan:
    """One request, and all that follows from it."""

    kind: str
    number: int
    prompt: str
    num_choices: int
    max_tokens: int
    steps_read: int  # of a request that is left
    key: str

    @property
    def is_batch(self) -> bool:
        return self.kind.startswith("batch")

    @property
    def is_hit(self) -> bool:
        return self.kind.endswith("cached")

    @property
    def num_output(self) -> int:
        """Tokens that are delivered."""
        steps = self.steps_read if self.kind == "left" else self.max_tokens
        return steps * self.num_choices


def draw(rng: random.Random, number: int, kept: Sequence[Plan]) -> Plan:
    """A request; a cached one repeats one of `kept`, whose answers the cache holds."""
    kind = rng.choice(KINDS)
    if kind.endswith("cached") and not kept:
        kind = "whole"
    if kind.endswith("cached"):
        return dataclasses.replace(rng.choice(kept), kind=kind, number=number)
    max_tokens = rng.randrange(2, 7)
    return Plan(
        kind=kind,
        number=number,
        prompt=f"{number:07d} " + "x" * rng.randrange(9, 900),
        num_choices=rng.randrange(1, 4),
        max_tokens=max_tokens,
        steps_read=rng.randrange(1, max_tokens),
        key=f"key{rng.randrange(5)}",
    )


@dataclass
class Books:
    """Sums by key and by technique, in money."""

    rows: int = 0
    output_tokens: int = 0
    cost: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    saved: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, plan: Plan) -> None:
        self.rows += 1
        self.kinds[plan.kind] += 1
        self.output_tokens += plan.num_output
        full = price(plan, is_batch=plan.is_batch)
        paid = rounded(full * HIT_PERCENT / 100) if plan.is_hit else full
        self.cost[plan.key] += paid
        if plan.is_hit:
            self.saved["exact_cache"] += full - paid
            return
        read, fresh = cached_price(is_batch=plan.is_batch)
        self.saved["prefix_cache"] += fresh - read
        if plan.is_batch:
            self.saved["batch"] += price(plan, is_batch=False) - full


def price(plan: Plan, *, is_batch: bool) -> Decimal:
    """Of all tokens, rounded once."""
    paid_in = RATE["input_cost_per_token_batches" if is_batch else "input_cost_per_token"]
    half = Decimal("0.5") if is_batch else Decimal(1)
    plain = len(plan.prompt.encode()) - CACHED
    return rounded(
        plain * paid_in
        + half * CACHED * RATE["cache_read_input_token_cost"]
        + half * plan.num_output * RATE["output_cost_per_token"]
    )


def cached_price(*, is_batch: bool) -> tuple[Decimal, Decimal]:
    """What the cached tokens cost, and what they would have cost."""
    paid_in = RATE["input_cost_per_token_batches" if is_batch else "input_cost_per_token"]
    half = Decimal("0.5") if is_batch else Decimal(1)
    return rounded(half * CACHED * RATE["cache_read_input_token_cost"]), rounded(CACHED * paid_in)


def rounded(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal(1).scaleb(-12), ROUND_HALF_EVEN)


async def run(folder: Path, num_requests: int, seed: int) -> tuple[Books, dict[str, Any]]:
    """What the books say, and what the ledger says: `compare` them."""
    database = Database(folder / "nonet.db", full_sync=False)
    database.open()
    rng, books = random.Random(seed), Books()
    try:
        gateway = await _gateway(folder, database)
        store = await _batch(folder, database, num_requests)
        kept: list[Plan] = []
        for start in range(0, num_requests, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, num_requests))
            plans = [draw(rng, number, kept) for number in numbers]
            await asyncio.gather(*[_send(gateway, store, plan) for plan in plans])
            for plan in plans:
                books.add(plan)
            kept = [plan for plan in plans if plan.kind in ("stream", "whole")]
        await gateway.close()
        return books, await _told(database)
    finally:
        await database.close()


def compare(books: Books, told: dict[str, Any]) -> None:
    """AssertionError unless they agree to the last pico."""
    assert told["rows"] == books.rows
    assert told["requests"] == books.rows, "a request has two rows"
    assert told["output_tokens"] == books.output_tokens
    assert told["cost"] == dict(books.cost)
    assert told["saved"] == dict(books.saved)


async def _gateway(folder: Path, database: Database) -> Pipeline:
    prices = folder / "prices.json"
    prices.write_text('{"fake": {' + ", ".join(f'"{k}": {v}' for k, v in PRICES.items()) + "}}")
    place = site(database=database, ledger=Ledger(database), rates=read_rates(prices, "fake"))
    keeper = Bookkeeper(Bookkeeper.Config(hit_percent=HIT_PERCENT), place)
    cache = ExactCache(ExactCache.Config(disk_mib=0), place)
    engine = ScriptedEngine(num_cached=CACHED)
    made = pipeline(engine, tiny_tokenizer(folder), keeper, cache)
    await made.start()
    return made


async def _batch(folder: Path, database: Database, num_lines: int) -> BatchStore:
    """A batch with a line for each request that might be one."""
    await FileStore(database, folder / "files", max_bytes=1).start()
    store = BatchStore(database)
    await store.start()
    record = BatchRecord(
        batch_id=BATCH_ID, tenant="", key_id="", dialect="openai", endpoint="/v1/test", status="validating",
        input_file_id="file-1", created_s=0, expires_s=1,
    )  # fmt: skip
    given = FileRecord(
        file_id="file-1", tenant="", purpose="batch", filename="", num_bytes=0, created_s=0
    )
    await store.create(record, given)
    lines = [Line(number, str(number), 0, 0) for number in range(num_lines)]
    await store.index(BATCH_ID, lines)
    await store.begin(BATCH_ID, num_lines)
    return store


async def _send(gateway: Pipeline, store: BatchStore, plan: Plan) -> None:
    if not plan.is_batch:
        await _read(gateway, _ask(plan, 0), plan)
        return
    for attempt in range(2 if plan.kind == "batch_twice" else 1):
        rows: list[LedgerRow] = []
        caller = Caller(key_id=plan.key, service_class="batch", book=rows.append)
        await _read(gateway, _ask(plan, attempt, caller), plan)
        billed = [row._replace(once=f"{BATCH_ID}/{plan.number}") for row in rows]
        line = SettledLine(plan.number, str(plan.number), LineState.COMPLETED, b"")
        is_new = await store.settle(
            BATCH_ID, line, LineUsage(), lambda c, rows=billed: insert_rows(c, rows)
        )
        assert is_new == (attempt == 0)


def _ask(plan: Plan, attempt: int, caller: Caller | None = None) -> Ask:
    """The ask as a dialect would make it: the service class is in the requests."""
    caller = caller or Caller(key_id=plan.key)
    made = ask(
        plan.prompt,
        name=f"{plan.number}.{attempt}",
        n=plan.num_choices,
        caller=caller,
        is_streamed=plan.kind in ("stream", "left"),
        temperature=1.0 if plan.kind in ("left", "batch", "batch_twice") else 0.0,
        max_tokens=plan.max_tokens,
    )
    if caller.service_class is None:
        return made
    requests = tuple(
        msgspec.structs.replace(request, service_class=caller.service_class)
        for request in made.requests
    )
    return msgspec.structs.replace(made, requests=requests)


async def _read(gateway: Pipeline, asked: Ask, plan: Plan) -> None:
    reply = await gateway.answer(asked)
    num_steps = 0
    async with contextlib.aclosing(reply.pieces) as steps:
        async for _ in steps:
            num_steps += 1
            if plan.kind == "left" and num_steps == plan.steps_read:
                break


async def _told(database: Database) -> dict[str, Any]:
    await database.write(lambda c: None)  # rows of those who left are written without waiting
    rows = await database.read(lambda c: list(export_rows(c, Span())))
    by_key = await database.read(lambda c: usage_report(c, Span(), ["key"]))
    savings = await database.read(lambda c: savings_report(c, Span()))
    return {
        "rows": len(rows),
        "requests": len({row.request_id for row in rows}),
        "output_tokens": sum(row.output_tokens for row in rows),
        "cost": {line["key"]: Decimal(line["cost"]) for line in by_key},
        "saved": {line["technique"]: Decimal(line["money"]) for line in savings},
    }
