"""Which tokens are legal? Grammars compiled against a vocabulary, and where each output stands in its own."""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["GRAMMARS"]

GRAMMARS = Catalogue("grammar compiler", {"llguidance": "nonet.grammar.llguidance:LLGuidance"})
