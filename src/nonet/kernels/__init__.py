"""Implementations of the operations of a forward pass, by name."""

from nonet.core.catalogue import Catalogue

__all__ = ["KERNELS"]

# Each class has `create(dtype, device, threads)`.
KERNELS = Catalogue(
    "kernel implementation",
    {
        "reference": "nonet.kernels.reference.ops:ReferenceOps",
        "native": "nonet.kernels.native.ops:NativeOps",
        "triton": "nonet.kernels.triton.ops:TritonOps",
    },
)
