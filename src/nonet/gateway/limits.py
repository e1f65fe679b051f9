"""Rate limits per API key: requests and tokens a minute, and money a day, refused with the time to wait.

An ask is charged with an estimate when it comes in, the prompt and all the output it may ask for, and settled to what
it used when it ends. An answer from a cache uses no tokens. The day is UTC's; what was spent in it is read from the
ledger at start, so a restart forgives nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from nonet.core.errors import ConfigError, RateLimitError
from nonet.gateway.answer import Ask, Caller, ChoiceText, KeyLimits, Reply
from nonet.gateway.bucket import TokenBucket
from nonet.gateway.pipeline import Next
from nonet.gateway.site import Site
from nonet.telemetry.ledger import create_ledger
from nonet.telemetry.prices import Tokens, picos_of
from nonet.telemetry.usage import spent_picos

__all__ = ["RateLimits", "check_limits"]

DAY_S = 86400.0
SOON_S = 1.0  # money that is only reserved may be free again any moment


class RateLimits:
    """The layer of limits; keys that have none of their own get those of its options."""

    @dataclass(frozen=True, slots=True)
    class Config:
        requests_per_minute: int = 0  # 0 does not limit
        tokens_per_minute: int = 0
        money_per_day: str = ""  # in the price table's currency; needs the ledger
        assumed_output: int = 256  # tokens reserved for a choice that names no maximum

        def __post_init__(self) -> None:
            for name in ("requests_per_minute", "tokens_per_minute"):
                if getattr(self, name) < 0:
                    raise ConfigError(
                        f"limits: {name} is {getattr(self, name)}; give 0 for none, or a number above it"
                    )
            if self.assumed_output < 1:
                raise ConfigError(
                    f"limits: assumed_output is {self.assumed_output}; give at least 1"
                )

    def __init__(self, config: Config, site: Site) -> None:
        self._site = site
        self._assumed_output = config.assumed_output
        self._given = KeyLimits(
            requests_per_minute=config.requests_per_minute or None,
            tokens_per_minute=config.tokens_per_minute or None,
            money_per_day=config.money_per_day or None,
        )
        check_limits(self._given, site)
        self._accounts: dict[str, _Account] = {}
        self._spent: dict[str, int] = {}  # by key, this day, before the server started
        self._started_day = 0

    async def start(self) -> None:
        self._started_day = self._day()
        database = self._site.database
        if self._site.books and database is not None:
            await database.write(create_ledger)
            since_s = self._started_day * DAY_S
            self._spent = await database.read(lambda connection: spent_picos(connection, since_s))

    async def close(self) -> None:
        """Nothing is kept open."""

    async def handle(self, ask: Ask, next: Next) -> Reply:
        account = self._account(ask.caller)
        hold = self._estimate(ask, account)
        now = self._site.clock.now()
        self._refuse(account, hold, now)
        account.take(hold, now)
        try:
            reply = await next(ask)
        except BaseException:
            account.settle(hold, 0, 0, self._site.clock.now())
            raise
        reply.outcome.headers += account.headers(now)
        reply.pieces = self._settled(account, hold, reply, reply.pieces)
        return reply

    async def _settled(
        self,
        account: _Account,
        hold: _Hold,
        reply: Reply,
        pieces: AsyncGenerator[list[ChoiceText], None],
    ) -> AsyncGenerator[list[ChoiceText], None]:
        try:
            async with contextlib.aclosing(pieces) as steps:
                async for step in steps:
                    yield step
        finally:
            is_hit = reply.outcome.cache in ("exact", "semantic")
            usage = reply.usage
            tokens = 0 if is_hit else usage.prompt_tokens + usage.completion_tokens
            picos = reply.outcome.cost_picos or 0
            account.settle(hold, tokens, picos, self._site.clock.now())

    def _account(self, caller: Caller) -> _Account:
        """The key's account; a key whose limits were changed gets a new one that has spent as much."""
        limits = _merged(caller.limits, self._given)
        account = self._accounts.get(caller.key_id)
        day = self._day()
        if account is None or account.limits != limits:
            spent = account.spent_picos if account is not None else 0
            if account is None and day == self._started_day:
                spent = self._spent.get(caller.key_id, 0)
            account = _Account.opened(limits, self._site.clock.now(), day, spent)
            self._accounts[caller.key_id] = account
        if account.day != day:
            account.day, account.spent_picos = day, 0
        return account

    def _estimate(self, ask: Ask, account: _Account) -> _Hold:
        outputs = sum(
            request.params.n * (request.params.max_tokens or self._assumed_output)
            for request in ask.requests
        )
        prompt = ask.num_prompt_tokens
        picos = 0
        if account.budget_picos is not None:
            rates = self._site.rates_of(ask.service_class)
            picos = rates.cost(Tokens(prompt=prompt, output=outputs))
        return _Hold(prompt + outputs, picos)

    def _refuse(self, account: _Account, hold: _Hold, now: float) -> None:
        for bucket, amount, what in (
            (account.requests, 1, "requests"),
            (account.tokens, hold.tokens, "tokens"),
        ):
            wait_s = bucket.wait_s(amount, now) if bucket is not None else 0.0
            if bucket is not None and wait_s > 0:
                raise RateLimitError(
                    f"this key may use {bucket.capacity} {what} per minute; "
                    f"try again in {math.ceil(wait_s)} s",
                    wait_s,
                )
        budget = account.budget_picos
        if budget is None or account.spent_picos + account.held_picos + hold.picos <= budget:
            return
        if account.spent_picos + hold.picos <= budget:
            raise RateLimitError(
                "what this key has in flight may use up its money for today; try again shortly",
                SOON_S,
            )
        wait_s = (account.day + 1) * DAY_S - self._site.wall()
        raise RateLimitError(
            f"this key may spend {account.limits.money_per_day} per day, and this request could cost more than is "
            f"left; try again in {math.ceil(wait_s)} s",
            wait_s,
        )

    def _day(self) -> int:
        return int(self._site.wall() // DAY_S)


@dataclass(frozen=True, slots=True)
class _Hold:
    """What an ask in flight is taken to use."""

    tokens: int
    picos: int


@dataclass(slots=True)
class _Account:
    """One key's buckets and its money of a day."""

    limits: KeyLimits
    requests: TokenBucket | None
    tokens: TokenBucket | None
    budget_picos: int | None
    day: int
    spent_picos: int
    held_picos: int = field(default=0)

    @classmethod
    def opened(cls, limits: KeyLimits, now: float, day: int, spent_picos: int) -> _Account:
        requests, tokens, money = (
            limits.requests_per_minute, limits.tokens_per_minute, limits.money_per_day,
        )  # fmt: skip
        return cls(
            limits=limits,
            requests=TokenBucket(requests, now) if requests is not None else None,
            tokens=TokenBucket(tokens, now) if tokens is not None else None,
            budget_picos=picos_of(money, "money_per_day") if money is not None else None,
            day=day,
            spent_picos=spent_picos,
        )

    def take(self, hold: _Hold, now: float) -> None:
        if self.requests is not None:
            self.requests.take(1, now)
        if self.tokens is not None:
            self.tokens.take(hold.tokens, now)
        self.held_picos += hold.picos

    def settle(self, hold: _Hold, tokens: int, picos: int, now: float) -> None:
        """The request stays counted, its tokens and money become what they were."""
        if self.tokens is not None:
            self.tokens.settle(hold.tokens, tokens, now)
        self.held_picos -= hold.picos
        self.spent_picos += picos

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """In the names of OpenAI's."""
        found: list[tuple[bytes, bytes]] = []
        for bucket, what in ((self.requests, b"requests"), (self.tokens, b"tokens")):
            if bucket is not None:
                left = max(0, math.floor(bucket.level(now)))
                found += [
                    (b"x-ratelimit-limit-" + what, b"%d" % bucket.capacity),
                    (b"x-ratelimit-remaining-" + what, b"%d" % left),
                    (b"x-ratelimit-reset-" + what, b"%.3fs" % bucket.full_in_s(now)),
                ]
        return found


def check_limits(limits: KeyLimits, site: Site) -> None:
    """ConfigError for limits that cannot be held."""
    if limits.money_per_day is not None:
        picos_of(limits.money_per_day, "money_per_day")
        if not site.books or not site.rates:
            raise ConfigError(
                "money_per_day needs the ledger and prices; add --gateway ledger and --price-table"
            )


def _merged(own: KeyLimits | None, given: KeyLimits) -> KeyLimits:
    """The key's own limits, and those of the options where it has none."""
    if own is None:
        return given

    def first(name: str) -> Any:
        value = getattr(own, name)
        return getattr(given, name) if value is None else value

    return KeyLimits(
        requests_per_minute=first("requests_per_minute"),
        tokens_per_minute=first("tokens_per_minute"),
        money_per_day=first("money_per_day"),
    )
