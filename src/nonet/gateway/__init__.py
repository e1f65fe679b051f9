"""What stands above the engine: layers that answer a request without it, bound it, or account for it."""

from nonet.core.catalogue import Catalogue

__all__ = ["LAYERS"]

# From the first layer to see a request to the last before the engine.
LAYERS = Catalogue(
    "gateway layer",
    {
        "limits": "nonet.gateway.limits:RateLimits",
        "ledger": "nonet.gateway.bookkeeper:Bookkeeper",
        "exact_cache": "nonet.gateway.cache.exact:ExactCache",
        "semantic_cache": "nonet.gateway.cache.semantic.layer:SemanticCache",
    },
)
