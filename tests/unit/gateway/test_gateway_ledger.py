"""The ledger against an oracle that adds decimals itself: streams, whole answers, aborts, failures, hits, batches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, site, text, tiny_tokenizer

from nonet.core.errors import InvalidRequestError, NonetError, OverloadedError, StoreError
from nonet.gateway.answer import Ask, Caller, ChoiceText, Outcome, Reply, Usage
from nonet.gateway.bookkeeper import Bookkeeper
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database, open_for_reading
from nonet.telemetry.events import Saving
from nonet.telemetry.ledger import Ledger, LedgerRow, insert_rows
from nonet.telemetry.prices import read_rates
from nonet.telemetry.usage import Span, export_rows, savings_report, spent_picos, usage_report

# Prices with many digits, so that rounding matters.
PRICES = {
    "input_cost_per_token": "0.00000015000000025",
    "output_cost_per_token": "0.00000060000000125",
    "cache_read_input_token_cost": "0.00000000000075025",
    "cache_creation_input_token_cost": "0.0000001875",
    "cache_creation_input_token_cost_above_1hr": "0.0000003",
    "input_cost_per_token_batches": "0.000000075000000375",
}
KINDS = ("stream", "whole", "aborted", "failed", "refused", "cached", "batch", "semantic", "early")


def price_file(folder: Path) -> Path:
    path = folder / "prices.json"
    path.write_text('{"fake": {' + ", ".join(f'"{k}": {v}' for k, v in PRICES.items()) + "}}")
    return path


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db", full_sync=False)
    made.open()
    yield made
    await made.close()


class Simulated:
    """Below the ledger: each ask says in its route what shall become of it."""

    def __init__(self, plans: dict[str, Plan]) -> None:
        self._plans = plans

    async def __call__(self, ask: Ask) -> Reply:
        plan = self._plans[ask.ask_id]
        if plan.kind == "refused":
            raise OverloadedError("full")
        outcome = Outcome(cache="miss")
        if plan.kind in ("cached", "semantic"):
            cache: Any = "exact" if plan.kind == "cached" else "semantic"
            saving = Saving(
                f"{cache}_cache", plan.usage.prompt_tokens, plan.usage.completion_tokens, 0.5
            )
            outcome = Outcome(cache=cache, savings=[saving], total=plan.usage, finish="stop")
        usage = Usage(prompt_tokens=plan.usage.prompt_tokens)
        return Reply(self._pieces(plan, usage), usage, outcome, lambda: 0)

    async def _pieces(self, plan: Plan, usage: Usage) -> AsyncGenerator[list[ChoiceText], None]:
        whole = plan.usage
        usage.cached_tokens = whole.cached_tokens
        usage.written_5m_tokens = whole.written_5m_tokens
        usage.written_1h_tokens = whole.written_1h_tokens
        if plan.kind == "early":
            yield []
            raise InvalidRequestError("no")
        first = min(1, whole.completion_tokens)
        usage.completion_tokens = first
        yield [ChoiceText(0, "x", [1] * first)]
        if plan.kind == "failed":
            raise NonetError("broken")
        usage.completion_tokens = whole.completion_tokens
        yield [ChoiceText(0, "y", finish_reason="stop")]


class Plan:
    def __init__(self, rng: random.Random, number: int) -> None:
        self.kind = rng.choice(KINDS)
        prompt = rng.randrange(1, 5000)
        cached, short, long = (rng.randrange(prompt // 4 + 1) for _ in range(3))
        self.usage = Usage(prompt, rng.randrange(1, 800), cached, short, long)
        self.key = f"key{rng.randrange(7)}"
        self.name = f"r{number}"


class Oracle:
    """What the ledger must come to, in decimals, by rules of its own."""

    def __init__(self, hit_percent: int) -> None:
        self.cost: dict[str, Decimal] = defaultdict(Decimal)
        self.rows = 0
        self.output_tokens = 0
        self.saved: dict[str, Decimal] = defaultdict(Decimal)
        self._hit = Decimal(hit_percent) / 100

    def add(self, plan: Plan) -> None:
        if plan.kind in ("refused", "early"):
            return
        self.rows += 1
        usage = plan.usage
        output = 1 if plan.kind in ("aborted", "failed") else usage.completion_tokens
        self.output_tokens += output
        if plan.kind == "failed":
            return
        full = self.price(usage, output, is_batch=plan.kind == "batch")
        paid = full
        if plan.kind in ("cached", "semantic"):
            paid = self.picos(full * self._hit)
            self.saved["exact_cache" if plan.kind == "cached" else "semantic_cache"] += full - paid
        elif plan.kind == "batch":
            self.saved["batch"] += self.price(usage, output, is_batch=False) - full
        self.cost[plan.key] += paid

    def price(self, usage: Usage, output: int, *, is_batch: bool) -> Decimal:
        rate = {name: Decimal(value) for name, value in PRICES.items()}
        half = Decimal("0.5") if is_batch else Decimal(1)
        input_rate = (
            rate["input_cost_per_token_batches"] if is_batch else rate["input_cost_per_token"]
        )
        plain = usage.prompt_tokens - usage.cached_tokens - usage.written_5m_tokens
        plain -= usage.written_1h_tokens
        total = plain * input_rate + half * (
            output * rate["output_cost_per_token"]
            + usage.cached_tokens * rate["cache_read_input_token_cost"]
            + usage.written_5m_tokens * rate["cache_creation_input_token_cost"]
            + usage.written_1h_tokens * rate["cache_creation_input_token_cost_above_1hr"]
        )
        return self.picos(total)

    @staticmethod
    def picos(amount: Decimal) -> Decimal:
        return amount.quantize(Decimal(1).scaleb(-12), ROUND_HALF_EVEN)


async def run_one(line: Pipeline, plan: Plan, books: list[LedgerRow]) -> None:
    is_batch = plan.kind == "batch"
    caller = Caller(
        tenant=plan.key,
        key_id=plan.key,
        book=books.append if is_batch else None,
    )
    asked = ask("x" * plan.usage.prompt_tokens, name=plan.name, caller=caller)
    if is_batch:
        request = msgspec.structs.replace(asked.requests[0], service_class="batch")
        asked = msgspec.structs.replace(asked, requests=(request,))
    with contextlib.suppress(NonetError):
        reply = await line.answer(asked)
        async with contextlib.aclosing(reply.pieces) as steps:
            async for _ in steps:
                if plan.kind == "aborted":
                    break


@pytest.mark.parametrize("num_requests", [3000, 20_000])
@pytest.mark.parametrize("hit_percent", [10])
async def test_the_ledger_equals_an_oracle(
    database: Database, tmp_path: Path, num_requests: int, hit_percent: int
) -> None:
    rng = random.Random(num_requests)
    ledger = Ledger(database)
    place = site(database=database, ledger=ledger, rates=read_rates(price_file(tmp_path), "fake"))
    plans: dict[str, Plan] = {}
    books: list[LedgerRow] = []
    keeper = Bookkeeper(Bookkeeper.Config(hit_percent=hit_percent), place)
    line = Pipeline([keeper], Simulated(plans))
    await line.start()
    oracle = Oracle(hit_percent)
    for start in range(0, num_requests, 500):
        group = [Plan(rng, number) for number in range(start, start + 500)]
        plans.clear()
        plans.update({f"{plan.name}-0": plan for plan in group})
        await asyncio.gather(*[run_one(line, plan, books) for plan in group])
        for plan in group:
            oracle.add(plan)
        batch, books[:] = list(books), []
        await database.write(lambda c, rows=batch: insert_rows(c, rows))  # type: ignore[misc]
    (total,) = await database.read(lambda c: usage_report(c, Span()))
    by_key = await database.read(lambda c: usage_report(c, Span(), ["key"]))
    assert total["requests"] == oracle.rows
    assert total["output_tokens"] == oracle.output_tokens
    assert {line["key"]: Decimal(line["cost"]) for line in by_key} == dict(oracle.cost)
    assert Decimal(total["cost"]) == sum(oracle.cost.values())
    spent = await database.read(lambda c: spent_picos(c, 0.0))
    assert {key: Decimal(picos).scaleb(-12) for key, picos in spent.items()} == dict(oracle.cost)
    savings = await database.read(lambda c: savings_report(c, Span()))
    saved = {line["technique"]: Decimal(line["money"]) for line in savings}
    del saved["prefix_cache"]
    assert saved == dict(oracle.saved)


def test_the_oracle_notices_a_cent(tmp_path: Path) -> None:
    """Mutant: rounding each kind of token by itself instead of the request."""
    rates = read_rates(price_file(tmp_path), "fake")["standard"]
    differ = 0
    for number in range(200):
        plan = Plan(random.Random(number), number)
        usage = plan.usage
        parts = [
            Oracle.picos(Decimal(count) * Decimal(rate).scaleb(-18))
            for count, rate in (
                (usage.completion_tokens, rates.output), (usage.cached_tokens, rates.cache_read),
            )
        ]  # fmt: skip
        whole = Oracle.picos(
            Decimal(usage.completion_tokens * rates.output + usage.cached_tokens * rates.cache_read).scaleb(-18)
        )  # fmt: skip
        differ += sum(parts) != whole
    assert differ > 20


async def test_rows_are_on_disk_before_the_last_piece_is_acknowledged(database: Database) -> None:
    ledger = Ledger(database)
    place = site(database=database, ledger=ledger)
    line = pipeline(ScriptedEngine(), tiny_tokenizer_here(), Bookkeeper(Bookkeeper.Config(), place))
    await line.start()
    for number in range(5):
        await read(await line.answer(ask(name=f"r{number}")))
        rows = await database.read(lambda c: list(export_rows(c, Span())))
        assert [row.request_id for row in rows][-1] == f"r{number}-0"
    assert rows[0].finish == "length"
    assert rows[0].output_tokens == 8


def tiny_tokenizer_here() -> Any:
    import tempfile

    return tiny_tokenizer(Path(tempfile.mkdtemp()))


async def test_a_ledger_that_cannot_be_written_fails_the_answer(database: Database) -> None:
    ledger = Ledger(database)
    line = Pipeline(
        [Bookkeeper(Bookkeeper.Config(), site(database=database, ledger=ledger))],
        Simulated({"a-0": Plan(random.Random(1), 1)}),
    )
    await line.start()
    await database.write(lambda c: c.execute("DROP TABLE ledger").close())
    plan = line.answer(ask())
    reply = await plan
    with pytest.raises(StoreError):
        await read(reply)


async def test_what_is_posted_last_is_written_and_one_turn_is_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one turn of the event loop go to the database together, at the latest when the ledger closes."""
    database = Database(tmp_path / "last.db")
    database.open()
    ledger = Ledger(database)
    await ledger.start()
    submitted: list[object] = []
    submit = database.submit
    monkeypatch.setattr(
        database, "submit", lambda job, done: (submitted.append(job), submit(job, done))
    )
    row = LedgerRow(
        1.0, "r", None, "t", "k", "m", "/v1", "batch", "", "stop", 1, 0, 0, 0, 1, 0.1, 5, "",
    )  # fmt: skip
    await asyncio.gather(*[ledger.record(row) for _ in range(30)])
    assert len(submitted) == 1
    ledger.post(row)
    ledger.close()
    await database.close()
    with contextlib.closing(open_for_reading(tmp_path / "last.db")) as reading:
        (total,) = usage_report(reading, Span())
    assert total["requests"] == 31


async def test_a_line_of_a_batch_is_booked_once(database: Database) -> None:
    await Ledger(database).start()
    row = LedgerRow(
        1.0, "r", "batch_1/a", "t", "k", "m", "/v1", "batch", "", "stop", 1, 0, 0, 0, 1, 0.1, 5, "",
    )  # fmt: skip
    for _ in range(3):
        await database.write(lambda c: insert_rows(c, [row, row]))
    free = row._replace(once=None)
    await database.write(lambda c: insert_rows(c, [free] * 69))
    (total,) = await database.read(lambda c: usage_report(c, Span()))
    assert total["requests"] == 70


async def test_hits_are_booked_with_what_they_saved(database: Database, tmp_path: Path) -> None:
    ledger = Ledger(database)
    rates = read_rates(price_file(tmp_path), "fake")
    place = site(database=database, ledger=ledger, rates=rates)
    engine = ScriptedEngine()
    line = pipeline(
        engine,
        tiny_tokenizer_here(),
        Bookkeeper(Bookkeeper.Config(), place),
        ExactCache(ExactCache.Config(), place),
    )
    await line.start()
    replies = [await line.answer(ask(name=f"r{number}")) for number in range(3)]  # one flight
    assert len({await text(reply) for reply in replies}) == 1
    late = await line.answer(ask(name="late"))
    assert late.outcome.cost == "0"
    await read(late)
    rows = await database.read(lambda c: {r.request_id: r for r in export_rows(c, Span())})
    assert engine.num_started == 1
    assert [rows[f"r{n}-0"].cache for n in range(3)] == ["miss", "exact", "exact"]
    full = rows["r0-0"].cost_picos
    assert full > 0
    assert replies[0].outcome.cost is not None
    for name in ("r1-0", "r2-0", "late-0"):
        row = rows[name]
        assert (row.cost_picos, row.output_tokens) == (0, 8)
        ((technique, prompt, output, _, picos),) = json.loads(row.savings)
        assert (technique, prompt, output, picos) == ("exact_cache", 5, 8, full)


async def test_reports_and_their_mistakes(database: Database) -> None:
    await Ledger(database).start()
    rows = [
        LedgerRow(
            86_400.0 * day + 5, f"r{day}", None, f"t{day % 2}", "k", "m", "/v1/x", "standard", "miss", "stop", 10, 0,
            0, 0, 2, 0.1, 7, "",
        )
        for day in range(4)
    ]  # fmt: skip
    await database.write(lambda c: insert_rows(c, rows))
    days = await database.read(lambda c: usage_report(c, Span(), ["day", "tenant"]))
    assert [(line["day"], line["tenant"]) for line in days][:2] == [
        ("1970-01-01", "t0"), ("1970-01-02", "t1"),
    ]  # fmt: skip
    mine = await database.read(lambda c: usage_report(c, Span(tenant="t1")))
    assert mine[0]["requests"] == 2
    two = await database.read(lambda c: usage_report(c, Span(86_400, 3 * 86_400)))
    assert two[0]["requests"] == 2
    assert await database.read(lambda c: usage_report(c, Span(1e9))) == []
    with pytest.raises(InvalidRequestError, match="Did you mean 'tenant'"):
        await database.read(lambda c: usage_report(c, Span(), ["tenants"]))


async def test_sums_beyond_64_bits(database: Database) -> None:
    await Ledger(database).start()
    row = LedgerRow(
        1.0, "r", None, "t", "k", "m", "/v1", "standard", "", "stop", 1, 0, 0, 0, 1, 0.1, 2**62 + 1,
        json.dumps([["batch", 0, 0, 0.0, 2**62 + 1]]),
    )  # fmt: skip
    await database.write(lambda c: insert_rows(c, [row] * 9))
    (total,) = await database.read(lambda c: usage_report(c, Span()))
    assert total["cost_picos"] == 9 * (2**62 + 1)
    (saved,) = await database.read(lambda c: savings_report(c, Span()))
    assert Decimal(saved["money"]) == Decimal(9 * (2**62 + 1)).scaleb(-12)
