"""The nouns of the gateway: what a call asks of a model and what comes back, in no API's dialect.

An `Ask` holds token ids, sampling and who asks; a `Reply` holds pieces of text and tokens, counts, and what became of
the ask on its way. Every dialect is built from these, so a layer serves all of them. They are structs: an answer from a
cache costs little more than making them. A default `[]` is a new list each time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import msgspec

from nonet.core.outputs import FinishReason, TokenLogprob
from nonet.core.request import Request
from nonet.core.service_class import ServiceClass
from nonet.telemetry.events import Saving
from nonet.telemetry.ledger import LedgerRow

__all__ = [
    "Ask",
    "CacheOutcome",
    "CacheWishes",
    "CallDelta",
    "Caller",
    "ChoiceText",
    "Conversation",
    "KeyLimits",
    "Outcome",
    "Reply",
    "Usage",
]

CacheOutcome = Literal["exact", "semantic", "miss", "bypass"]


class CallDelta(msgspec.Struct):
    """News of one tool call: it begins (then it has an id and a name), or its arguments, JSON text, grow."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class ChoiceText(msgspec.Struct):
    """New text of one choice; several deltas of a reader that was behind come as one.

    `calls` are found in the text above the gateway, which knows text only; `ends_in_calls` says on the last piece that
    the choice ended by itself and there were some.
    """

    choice: int
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    text_offsets: list[int] = []  # characters before each token
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    thought: str = ""  # what the model wrote for itself; found above the gateway too
    calls: list[CallDelta] = []
    ends_in_calls: bool = False
    embedding: bytes | None = None  # of a request that pools: float32, little endian


class Usage(msgspec.Struct):
    """Tokens of the whole call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    written_5m_tokens: int = 0  # prompt tokens kept in the prefix cache on request, for 5 minutes
    written_1h_tokens: int = 0  # and for an hour
    thought_tokens: int = 0  # of the completion, what the model wrote for itself


class CacheWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller says about cached answers: the Cache-Control of HTTP, and the consent to a sampled one."""

    no_cache: bool = False  # a new answer is wanted; it may be kept
    no_store: bool = False  # neither read nor keep
    max_age_s: float | None = None
    allow_sampled: bool = False  # an answer that was drawn at random for an equal ask will do


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one API key may use; None does not limit. Money is in the price table's currency, as a decimal."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    money_per_day: str | None = None


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and on what terms. Nothing cached for one tenant is ever seen by another."""

    tenant: str = ""
    key_id: str = ""  # which of the tenant's keys; what is used is booked to it
    service_class: ServiceClass | None = None  # in place of what the requests say
    wishes: CacheWishes = CacheWishes()
    limits: KeyLimits | None = None  # None: what the limits layer gives to all
    book: Callable[[LedgerRow], None] | None = None  # takes the row instead of the ledger


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A chat as the dialect understood it, for layers that need more than token ids. `settings` is what else shapes the
    answer: tools, the choice among them, the format asked for."""

    messages: list[dict[str, Any]]
    settings: dict[str, Any]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One call: its requests, in the order of its prompts. Choice numbers run over prompts, then over n.

    `echoed` is, per request, how many characters of prompt the answer will repeat before its own. Without
    `is_streamed` the pieces may be few and large; with `keeps_steps` each is still what one step brought. With
    `idle_s`, an empty list comes when nothing came for that long. `held` is a cache's entry for an equal ask, whose
    answer the caller has at hand: when the reply is that entry, its pieces are left out.
    """

    requests: tuple[Request, ...]
    caller: Caller = Caller()
    route: str = ""  # where the call came in, for the books
    model: str = ""  # as the caller knows it: the served model, or an adapter over it
    echoed: tuple[int, ...] | None = None
    conversation: Conversation | None = None
    encoder: str = ""  # the text encoder that is to answer; the model when empty
    is_streamed: bool = False
    idle_s: float | None = None
    keeps_steps: bool = False
    held: object | None = None

    @property
    def ask_id(self) -> str:
        """Unique: made by the server."""
        return self.requests[0].request_id

    @property
    def service_class(self) -> ServiceClass:
        return self.requests[0].service_class

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt_ids) for request in self.requests)

    @property
    def num_choices(self) -> int:
        return len(self.requests) * self.requests[0].params.n


class Outcome(msgspec.Struct):
    """What became of an ask. Layers write what they know before they return their reply; `headers` tells the client."""

    cache: CacheOutcome | None = None  # None: no cache stands in the way
    similarity: float | None = None
    tier: str | None = None
    cost: str | None = None  # a decimal, where it is known before the answer
    cost_picos: int | None = None  # once it is booked
    savings: list[Saving] = []  # an answer from a cache is counted from its usage
    headers: list[tuple[bytes, bytes]] = []  # of layers that have more to say
    entry: object | None = None  # the cache's own object that the answer was read from
    total: Usage | None = None  # the counts of the whole answer, where they are known before it
    finish: FinishReason | None = None  # with `total`

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the HTTP answer."""
        named = (
            (b"x-nonet-cache", self.cache),
            (b"x-nonet-similarity", None if self.similarity is None else f"{self.similarity:.4f}"),
            (b"x-nonet-tier", self.tier),
            (b"x-nonet-cost", self.cost),
        )
        return [(name, text.encode()) for name, text in named if text is not None] + self.headers


class Reply(msgspec.Struct):
    """The answer to an ask while it comes.

    `pieces` yields new text in order, an empty list when idle; its reader must exhaust or close it. `usage` grows with
    the pieces. Closing `pieces` early gives the rest of the answer up. A piece may have other readers, so nobody
    changes one.
    """

    pieces: AsyncGenerator[list[ChoiceText], None]
    usage: Usage
    outcome: Outcome
    pending_bytes: Callable[[], int]  # what waits unread, for the guard of slow readers
