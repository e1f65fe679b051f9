"""Everything that shapes a distribution before the draw, and the order in which it happens.

Logits are changed first (bias, forbidden endings, penalties, temperature, forced outputs); then the tokens are ranked
and cut (min-p, top-k, top-p, each on what the one before left). The order of the
tables is that order, and vLLM's.
"""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["PROCESSORS", "TRUNCATIONS"]

PROCESSORS = Catalogue(
    "logits processor",
    {
        "logit_bias": "nonet.sampling.processors.logit_bias:LogitBias",
        "min_tokens": "nonet.sampling.processors.min_tokens:MinTokens",
        "penalties": "nonet.sampling.processors.penalties:Penalties",
        "temperature": "nonet.sampling.processors.temperature:Temperature",
        "forced": "nonet.sampling.processors.forced:Forced",
    },
)

TRUNCATIONS = Catalogue(
    "truncation",
    {
        "min_p": "nonet.sampling.processors.min_p:MinP",
        "top_k": "nonet.sampling.processors.top_k:TopK",
        "top_p": "nonet.sampling.processors.top_p:TopP",
    },
)
