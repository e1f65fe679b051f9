"""Implementations of the operations of a forward pass, by name."""

from nonet.core.catalogue import Catalogue

__all__ = ["FIXED_ORDER_KERNELS", "KERNELS"]

# Each class has `create(dtype, device, threads)`.
KERNELS = Catalogue(
    "kernel implementation",
    {
        "reference": "nonet.kernels.reference.ops:ReferenceOps",
        "padded": "nonet.kernels.padded.ops:PaddedOps",
        "flash": "nonet.kernels.padded.flash:FlashOps",
        "native": "nonet.kernels.native.ops:NativeOps",
        "triton": "nonet.kernels.triton.ops:TritonOps",
    },
)

# Those whose results for a token depend on its own sequence alone, to the bit.
FIXED_ORDER_KERNELS = Catalogue(
    "kernel implementation in fixed order",
    {
        "native": "nonet.kernels.native.ops:NativeOps",
        "triton": "nonet.kernels.triton.fixed_order:FixedOrderOps",
    },
)
