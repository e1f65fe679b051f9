"""Which tokens of a live sequence lose their KV, by name of the technique."""

from nonet.core.catalogue import Catalogue

__all__ = ["PRUNERS"]

PRUNERS = Catalogue(
    "KV pruner",
    {
        "recent": "nonet.kv.prune.recent:RecentOnly",
        "snapkv": "nonet.kv.prune.snapkv:SnapKV",
    },
)
