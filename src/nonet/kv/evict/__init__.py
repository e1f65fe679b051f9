"""Which idle block loses its content when a blank one is needed and there is none."""

from nonet.core.catalogue import Catalogue

__all__ = ["EVICTORS"]

EVICTORS = Catalogue("block evictor", {"lru": "nonet.kv.evict.lru:LruEvictor"})
