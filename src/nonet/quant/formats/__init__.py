"""How are weights held? One file a format."""

from nonet.core.catalogue import Catalogue

__all__ = ["WEIGHT_FORMATS"]

WEIGHT_FORMATS = Catalogue(
    "weight format",
    {
        "dense": "nonet.quant.formats.dense:Dense",
        "native": "nonet.quant.formats.native:Native",
        "int8": "nonet.quant.formats.rounded:Int8",
        "int4": "nonet.quant.formats.rounded:Int4",
    },
)
