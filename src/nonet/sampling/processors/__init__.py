"""Everything that shapes a distribution before the draw, and the order in which it happens.

Logits are changed first (bias, forbidden endings, penalties, temperature, forced outputs); then the tokens are ranked
and cut (min-p, top-k, top-p, each on what the one before left). The order is vLLM's.
"""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["PROCESSORS", "PROCESSOR_ORDER", "TRUNCATIONS", "TRUNCATION_ORDER"]

PROCESSORS = Catalogue(
    "logits processor",
    {
        "forced": "nonet.sampling.processors.forced:Forced",
        "logit_bias": "nonet.sampling.processors.logit_bias:LogitBias",
        "min_tokens": "nonet.sampling.processors.min_tokens:MinTokens",
        "penalties": "nonet.sampling.processors.penalties:Penalties",
        "temperature": "nonet.sampling.processors.temperature:Temperature",
    },
)
PROCESSOR_ORDER = ("logit_bias", "min_tokens", "penalties", "temperature", "forced")

TRUNCATIONS = Catalogue(
    "truncation",
    {
        "min_p": "nonet.sampling.processors.min_p:MinP",
        "top_k": "nonet.sampling.processors.top_k:TopK",
        "top_p": "nonet.sampling.processors.top_p:TopP",
    },
)
TRUNCATION_ORDER = ("min_p", "top_k", "top_p")
