"""How is an entry of the KV cache held? One file a format; entries without one are numbers in the model's dtype."""

from nonet.core.catalogue import Catalogue

__all__ = ["KV_FORMATS"]

# The modules import without torch: the memory plan asks for sizes in processes that never load it.
KV_FORMATS = Catalogue(
    "KV format",
    {
        "fp8": "nonet.kv.format.fp8:Float8",
        "int8": "nonet.kv.format.int8:Int8",
    },
)
