"""How are weights held? One file a format; torch-free until a matrix is converted, so that a plan can be made."""

from nonet.core.catalogue import Catalogue

__all__ = ["UNQUANTIZED", "WEIGHT_FORMATS"]

UNQUANTIZED = "dense"  # where nothing else is asked for

WEIGHT_FORMATS = Catalogue(
    "weight format",
    {
        "dense": "nonet.quant.formats.dense:Dense",
        "fp8": "nonet.quant.formats.fp8:Float8",
        "int4": "nonet.quant.formats.int4:Int4",
        "int8": "nonet.quant.formats.int8:Int8",
        "native": "nonet.quant.formats.native:Native",
        "w8a8": "nonet.quant.formats.w8a8:W8A8",
    },
)
