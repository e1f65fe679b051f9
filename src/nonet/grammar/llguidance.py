"""llguidance: a lexer of derivatives and an Earley parser over the token trie.

Idea: nothing is precomputed per grammar; each mask walks the trie with the parser's state, and tokens that lie wholly
within a string are settled by slices made once per vocabulary.
Reference: github.com/guidance-ai/llguidance.
Cost: about 50 microseconds per mask; compiling takes about a millisecond, large schemas up to some hundred.
Good for: JSON Schema, regular expressions, Lark and GBNF grammars, choices.
Conflicts: none.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.grammar.base import Masks, Matcher
from nonet.grammar.closing import ClosingOrder
from nonet.grammar.json_schema import alternatives
from nonet.grammar.vocabulary import TokenBytes
from nonet.grammar.way_out import WayOut
from nonet.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import TokenizerWrapper

__all__ = ["LLGuidance"]

# Masks of a step that take longer are dealt out to threads, which cost some milliseconds themselves.
WORTH_THREADS_S = 0.008
FORGET = 0.9  # of what a mask took before the last step
MAX_COMPILED = 256  # grammars kept; the least recently used goes first
MAX_COMPILED_CHARS = 8 * 1024 * 1024  # of their texts together


class LLGuidance:
    """A compiler for one vocabulary. The tokenizer is read when the first grammar is compiled.

    >>> compiler = LLGuidance(lambda: tokenizer, vocab_size=49152, eos_ids=(2,))  # doctest: +SKIP
    >>> compiler.start(Grammar("choice", '["yes", "no"]')).advance(9767)  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        load_tokenizer: Callable[[], Tokenizer],
        vocab_size: int,
        eos_ids: Sequence[int],
        threads: int = 1,
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = [i for i in eos_ids if i < vocab_size]
        self._executor = LLExecutor(threads) if threads > 1 else None
        self._mask_s = 0.0  # what a mask took lately, one after the other
        # Diagnostics of the parser would put a client's schema into logs and other clients' errors.
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def load(self) -> None:
        assert self._tokens

    def is_compiled(self, grammar: Grammar) -> bool:
        with self._lock:
            return grammar in self._compiled

    def compile(self, grammar: Grammar) -> None:
        self._prototype(grammar)

    def start(self, grammar: Grammar) -> Matcher:
        return _Matcher(self._prototype(grammar).deep_copy(), self._eos_ids, self._closing_order)

    def fill(self, wanted: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        inner = [(_inner(matcher), row) for matcher, row in wanted]
        address, stride = masks.ctypes.data, masks.strides[0]
        began = time.perf_counter()
        if self._executor is not None and len(inner) * self._mask_s > WORTH_THREADS_S:
            self._executor.unsafe_compute_mask_ptr(inner, address, stride, len(masks))
            self._mask_s *= FORGET  # until one thread is tried again
            return
        for matcher, row in inner:
            matcher.unsafe_compute_mask_ptr(address + row * stride, stride)
        if inner:
            took_s = (time.perf_counter() - began) / len(inner)
            self._mask_s = FORGET * self._mask_s + (1 - FORGET) * took_s

    def _prototype(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            known = self._compiled.get(grammar)
            if known is not None:
                self._compiled.move_to_end(grammar)
                return known
        made = self._make(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > MAX_COMPILED or (
                len(self._compiled) > 1
                and sum(len(one.text) for one in self._compiled) > MAX_COMPILED_CHARS
            ):
                self._compiled.popitem(last=False)
        return made

    def _make(self, grammar: Grammar) -> LLMatcher:
        """The first way to state the grammar that the library takes, or else what it said of the first."""
        refusal = ""
        try:
            for source in sources_of(grammar):
                matcher = LLMatcher(self._tokens, source, log_level=0, limits=self._limits)
                error = matcher.get_error() or _trouble_at_first(matcher)
                if not error:
                    return matcher
                refusal = refusal or f"the grammar cannot be used: {_sentence(error)}"
        except InvalidRequestError:
            if not refusal:
                raise
        raise InvalidRequestError(refusal)

    @property
    def _tokens(self) -> LLTokenizer:
        with self._loading:
            return self._loaded

    @cached_property
    def _loaded(self) -> LLTokenizer:
        if not self._eos_ids:
            raise InvalidRequestError(
                "the model names no end-of-sequence token, so a grammar could not end its output"
            )
        return LLTokenizer(cast("TokenizerWrapper", self._token_bytes), eos_token=self._eos_ids)

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self._load_tokenizer(), self._vocab_size, self._eos_ids)

    def _closing_order(self) -> ClosingOrder:
        with self._loading:
            return self._order

    @cached_property
    def _order(self) -> ClosingOrder:
        special = set(self._token_bytes.special_token_ids)
        return ClosingOrder(
            [b"" if i in special else one for i, one in enumerate(self._token_bytes.tokens)]
        )


def _trouble_at_first(matcher: LLMatcher) -> str:
    """Why no token may come first, or ""."""
    is_dead = not any(matcher.compute_bitmask())
    error = matcher.get_error()
    # What the library says of a rule that never ends, such as one of itself alone.
    if is_dead or error.startswith("NoExtensionBias"):
        return "no output can satisfy it"
    return error


class _Matcher:
    """LLMatcher, which cannot undo an end of sequence, so that is kept here."""

    __slots__ = ("_closing_order", "_eos_ids", "_num_ends", "inner")

    def __init__(
        self, inner: LLMatcher, eos_ids: list[int], closing_order: Callable[[], ClosingOrder]
    ) -> None:
        self.inner = inner
        self._eos_ids = eos_ids
        self._closing_order = closing_order
        self._num_ends = 0

    @property
    def error(self) -> str | None:
        return _sentence(self.inner.get_error()) if self.inner.is_error() else None

    def advance(self, token_id: int) -> bool:
        if self._num_ends:
            return False
        if token_id in self._eos_ids:
            if not self.inner.is_accepting():
                return False
            self._num_ends = 1
            return True
        return self.inner.try_consume_tokens([token_id]) == 1

    def rollback(self, num_tokens: int) -> None:
        num_tokens -= self._num_ends
        self._num_ends = 0
        if num_tokens:
            self.inner.rollback(num_tokens)

    def tokens_to_end(self, most: int) -> int | None:
        if self._num_ends:
            return 0
        inner, out = self.inner.deep_copy(), WayOut(self._closing_order())
        number = 1
        while not inner.is_accepting():
            way = out.next(inner)
            number += len(way)
            if not way or number > most or inner.try_consume_tokens(way) != len(way):
                return None
        return number if number <= most else None

    def soonest(self, legal: Masks) -> int | None:
        if not self._num_ends and self.inner.is_accepting():
            return self._eos_ids[0]
        if not legal.any():
            return None
        return next(iter(WayOut(self._closing_order()).next(self.inner)), None)


def sources_of(grammar: Grammar) -> Iterator[str]:
    """The grammar in llguidance's own notation; a schema in several ways, for when it does not take the first."""
    match grammar.kind:
        case "json_schema":
            yield from map(_json, alternatives(grammar.text))
        case "json_object":
            yield from map(_json, alternatives('{"type": "object"}'))
        case "regex":
            yield LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            yield _choice(grammar.text)
        case "lark":
            yield _lark(grammar.text)


def _json(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema)
    except ValueError as error:  # JSON that Python reads and the library does not
        raise InvalidRequestError(f"the schema cannot be read: {_sentence(str(error))}") from None


def _choice(text: str) -> str:
    """`text` is a JSON list of strings."""
    try:
        choices = json.loads(text)
    except ValueError:
        choices = None
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise InvalidRequestError("a choice needs a list of texts, none of them empty")
    options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return LLMatcher.grammar_from_lark(f"start: {options}")


def _lark(text: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    except Exception as error:  # the converter from GBNF raises plain Exception
        raise InvalidRequestError(f"the grammar cannot be read: {_sentence(str(error))}") from None


def _inner(matcher: Matcher) -> LLMatcher:
    assert isinstance(matcher, _Matcher), "a matcher of another compiler"
    return matcher.inner


def _sentence(error: str) -> str:
    """The first line of what the library says, shortened; of a pattern also what is wrong, which comes further down."""
    first, *others = [line.strip() for line in error.strip().splitlines()] or [""]
    reason = next((line for line in others if line.startswith("error: ")), "")
    if first.endswith(":") and reason:
        first = f"{first} {reason.removeprefix('error: ')}"
    line = first.removesuffix(".")
    return line if len(line) <= 300 else line[:297] + "..."
