"""How the tokens of one request are chosen."""

from __future__ import annotations

import msgspec

from nonet.core import limits
from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar

__all__ = ["SamplingParams"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling of one request; immutable, checked by `verify`.

    >>> SamplingParams(temperature=0.0, max_tokens=8).is_greedy
    True
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all tokens
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    frequency_penalty: float = 0.0  # over output only
    presence_penalty: float = 0.0  # over output only
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None  # None: up to the context's end
    min_tokens: int = 0
    stop: list[str] = msgspec.field(default_factory=list)
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # None: none; 0: the chosen token's only
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None  # what shape the output must have
    finish_in_time: bool = False  # near max_tokens, keep to what completes the grammar soonest
    forced_ids: list[int] | None = None  # outputs, whatever the model says; offline only

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def needs_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    def verify(self, vocab_size: int) -> None:
        """Raise InvalidRequestError for a value out of its range or a token id outside the vocabulary."""
        for field in (
            "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
            "presence_penalty", "logit_bias", "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids",
            "logprobs", "prompt_logprobs",
        ):  # fmt: skip
            value = getattr(self, field)
            if value is not None:
                limits.check(field, value)
        for text in self.stop:
            if not text:
                raise InvalidRequestError(
                    "a stop string is empty; give at least one character", "stop"
                )
            limits.check("stop_item", text, param="stop")
        for field, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", list(self.logit_bias or ())),
            ("forced_ids", self.forced_ids or []),
        ):
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidRequestError(
                        f"{field} holds token id {token_id}; the vocabulary has ids 0 to {vocab_size - 1}",
                        field,
                    )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}, above max_tokens {self.max_tokens}; lower it",
                "min_tokens",
            )
        if self.finish_in_time and self.max_tokens is None:
            raise InvalidRequestError(
                "finish_in_time needs max_tokens, the number of tokens to finish in; give it",
                "finish_in_time",
            )
        if self.grammar is not None:
            self._verify_grammar(self.grammar)

    def _verify_grammar(self, grammar: Grammar) -> None:
        grammar.verify()
        for field, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
            if value:
                raise InvalidRequestError(
                    f"{field} cannot be had together with a grammar, which says where the output ends; leave it out",
                    field,
                )
