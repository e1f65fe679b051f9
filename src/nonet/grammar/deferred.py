"""A grammar compiler whose library is imported with the first grammar: an engine that needs none starts without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.grammar import GRAMMARS
from nonet.grammar.base import GrammarCompiler, Masks, Matcher
from nonet.text.tokenizer import Tokenizer

__all__ = ["DeferredCompiler", "default_compiler"]


COMPILER = "llguidance"


def default_compiler(
    load_tokenizer: Callable[[], Tokenizer],
    vocab_size: int,
    eos_ids: Sequence[int],
    threads: int = 1,
) -> GrammarCompiler:
    """The compiler for a vocabulary; the tokenizer is read, and the library imported, for the first grammar."""

    def make() -> GrammarCompiler:
        compiler: GrammarCompiler = GRAMMARS.load(COMPILER)(
            load_tokenizer, vocab_size, eos_ids, threads
        )
        return compiler

    return DeferredCompiler(make)


class DeferredCompiler:
    """Stands for the compiler that `make` returns. Where its package is missing, each grammar is refused by name."""

    def __init__(self, make: Callable[[], GrammarCompiler]) -> None:
        self._make = make
        self._made: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def load(self) -> None:
        self._compiler().load()

    def is_compiled(self, grammar: Grammar) -> bool:
        return self._made is not None and self._made.is_compiled(grammar)

    def compile(self, grammar: Grammar) -> None:
        self._compiler().compile(grammar)

    def start(self, grammar: Grammar) -> Matcher:
        return self._compiler().start(grammar)

    def fill(self, wanted: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        self._compiler().fill(wanted, masks)

    def _compiler(self) -> GrammarCompiler:
        with self._lock:
            if self._made is None:
                self._made = self._imported()
            return self._made

    def _imported(self) -> GrammarCompiler:
        try:
            return self._make()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "nonet"):  # a fault of ours, not of the installation
                raise
            raise InvalidRequestError(
                f"grammars, JSON schemas and forced tool calls need the Python package {package!r}, which is not "
                f"installed where nonet runs; install it there (pip install {package}) and start again"
            ) from None
