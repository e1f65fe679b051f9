"""Books every answer in the ledger, once, before its last byte goes out.

A stream, a whole answer, a line of a batch and an answer from a cache take the same way, so they are counted alike. A
caller who leaves pays for what was delivered. An answer that our side could not finish costs nothing. What is refused
is not booked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import orjson

from nonet.core.errors import ConfigError, NonetError, UserError
from nonet.core.service_class import ServiceClass
from nonet.gateway.answer import Ask, ChoiceText, Outcome, Reply, Usage
from nonet.gateway.pipeline import Next
from nonet.gateway.site import Site
from nonet.telemetry.events import Saving
from nonet.telemetry.ledger import Ledger, LedgerRow
from nonet.telemetry.prices import Tokens, as_money

__all__ = ["Bookkeeper"]

MAX_HITS = 4096  # bills of hits kept: equal hits cost the same

Line = list[str | int | float]


class Bookkeeper:
    """The ledger's layer."""

    @dataclass(frozen=True, slots=True)
    class Config:
        hit_percent: int = (
            0  # of the full price, for an answer from the exact or the semantic cache
        )

        def __post_init__(self) -> None:
            if not 0 <= self.hit_percent <= 100:
                raise ConfigError(
                    f"ledger: hit_percent is {self.hit_percent}; give a number from 0 to 100"
                )

    def __init__(self, config: Config, site: Site) -> None:
        self._hit_percent = config.hit_percent
        self._hits: dict[tuple[ServiceClass, str, float, Tokens], _Bill] = {}
        self._site = site
        site.needed_database("the ledger")
        assert site.ledger is not None
        self._ledger: Ledger = site.ledger

    async def start(self) -> None:
        await self._ledger.start()

    async def close(self) -> None:
        """The database writes what is queued when it is closed."""
        self._ledger.close()

    async def handle(self, ask: Ask, next: Next) -> Reply:
        began_s = self._site.clock.now()
        reply = await next(ask)
        outcome = reply.outcome
        bill = None
        if outcome.total is not None:
            bill = self._bill(ask, outcome, outcome.total)
            outcome.cost = bill.cost
            if ask.held is not None and ask.held is outcome.entry:
                # The answer is at hand, nothing is left to come.
                await self._book(ask, outcome, outcome.total, str(outcome.finish), began_s, bill)
                return reply
        reply.pieces = self._booked(ask, reply, reply.pieces, began_s, bill)
        return reply

    async def _booked(
        self,
        ask: Ask,
        reply: Reply,
        pieces: AsyncGenerator[list[ChoiceText], None],
        began_s: float,
        bill: _Bill | None,
    ) -> AsyncGenerator[list[ChoiceText], None]:
        has_begun = reply.outcome.finish is not None
        reasons = {reply.outcome.finish}
        finish = "abort"
        try:
            async for step in pieces:
                for piece in step:
                    has_begun = True
                    if piece.finish_reason is not None:
                        reasons.add(piece.finish_reason)
                yield step
            finish = "length" if "length" in reasons else "stop"
        except NonetError as error:
            finish = "error" if has_begun and not isinstance(error, UserError) else ""
            raise
        finally:
            await pieces.aclose()
            if finish in ("abort", "error"):
                usage = reply.usage if has_begun else Usage()
                owed = self._bill(ask, reply.outcome, usage) if finish == "abort" else NOTHING
                reply.outcome.cost_picos = owed.cost_picos
                self._post(ask, self._row(ask, reply.outcome, usage, finish, began_s, owed))
        usage = reply.outcome.total or reply.usage
        bill = bill or self._bill(ask, reply.outcome, usage)
        await self._book(ask, reply.outcome, usage, finish, began_s, bill)

    async def _book(
        self, ask: Ask, outcome: Outcome, usage: Usage, finish: str, began_s: float, bill: _Bill
    ) -> None:
        """Returns once an answer that came to its end is in the books."""
        outcome.cost, outcome.cost_picos = bill.cost, bill.cost_picos
        row = self._row(ask, outcome, usage, finish, began_s, bill)
        if ask.caller.book is not None:
            ask.caller.book(row)
        else:
            await self._ledger.record(row)

    def _post(self, ask: Ask, row: LedgerRow) -> None:
        if ask.caller.book is None:
            self._ledger.post(row)

    def _row(
        self, ask: Ask, outcome: Outcome, usage: Usage, finish: str, began_s: float, bill: _Bill
    ) -> LedgerRow:
        caller = ask.caller
        return LedgerRow(
            at_s=self._site.wall(),
            request_id=ask.ask_id,
            once=None,
            tenant=caller.tenant,
            key_id=caller.key_id,
            model=ask.model or self._site.model,
            route=ask.route,
            tier=ask.service_class,
            cache=outcome.cache or "",
            finish=finish,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            written_5m_tokens=usage.written_5m_tokens,
            written_1h_tokens=usage.written_1h_tokens,
            output_tokens=usage.completion_tokens,
            seconds=self._site.clock.now() - began_s,
            cost_picos=bill.cost_picos,
            savings=bill.savings,
        )

    def _bill(self, ask: Ask, outcome: Outcome, usage: Usage) -> _Bill:
        if outcome.cache not in ("exact", "semantic"):
            return _bill_of(*self._priced(ask, outcome, tokens_of(usage)))
        seconds = sum([saving.seconds for saving in outcome.savings])
        key = (ask.service_class, outcome.cache, seconds, tokens_of(usage))
        bill = self._hits.get(key)
        if bill is None:
            bill = _bill_of(*self._priced_hit(*key))
            if len(self._hits) >= MAX_HITS:
                self._hits.clear()
            self._hits[key] = bill
        return bill

    def _priced(self, ask: Ask, outcome: Outcome, tokens: Tokens) -> tuple[int, list[Line]]:
        rates = self._site.rates_of(ask.service_class)
        cost = rates.cost(tokens)
        savings: list[Line] = []
        if tokens.cached:
            uncached = rates.cost(Tokens(prompt=tokens.cached))
            spared = uncached - rates.cost(Tokens(prompt=tokens.cached, cached=tokens.cached))
            savings.append(_line(Saving("prefix_cache", prompt_tokens=tokens.cached), spared))
        for saving in outcome.savings:
            worth = Tokens(prompt=saving.prompt_tokens, output=saving.output_tokens)
            savings.append(_line(saving, rates.cost(worth)))
        if ask.service_class == "batch":
            spared = self._site.rates_of("standard").cost(tokens) - cost
            savings.append(_line(Saving("batch"), spared))
        return cost, savings

    def _priced_hit(
        self, service_class: ServiceClass, cache: str, seconds: float, tokens: Tokens
    ) -> tuple[int, list[Line]]:
        full = self._site.rates_of(service_class).cost(tokens)
        cost = _percent(full, self._hit_percent)
        hit = Saving(f"{cache}_cache", tokens.prompt, tokens.output, seconds)
        return cost, [_line(hit, full - cost)]


@dataclass(frozen=True, slots=True)
class _Bill:
    """What an answer costs, also as a decimal, and what was saved, as the ledger keeps it."""

    cost_picos: int
    cost: str
    savings: str


NOTHING = _Bill(0, "0", "")


def _bill_of(cost_picos: int, savings: list[Line]) -> _Bill:
    text = orjson.dumps(savings).decode() if savings else ""
    return _Bill(cost_picos, as_money(cost_picos), text)


def tokens_of(usage: Usage) -> Tokens:
    return Tokens(
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens,
        written_5m=usage.written_5m_tokens,
        written_1h=usage.written_1h_tokens,
        output=usage.completion_tokens,
    )


def _line(saving: Saving, picos: int) -> Line:
    return [
        saving.technique,
        saving.prompt_tokens,
        saving.output_tokens,
        round(saving.seconds, 6),
        picos,
    ]


def _percent(picos: int, percent: int) -> int:
    """A share, rounded half to even."""
    whole, rest = divmod(picos * percent, 100)
    return whole + (rest > 50 or (rest == 50 and whole % 2 == 1))
