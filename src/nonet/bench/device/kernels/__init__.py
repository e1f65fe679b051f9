"""The benchmarks of single operations by name: `nonet bench kernel NAME`."""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["KERNEL_BENCHES"]

_HERE = "nonet.bench.device.kernels."

# A function of a `Bench` that yields `Problem`s, one for each size.
KERNEL_BENCHES = Catalogue(
    "kernel benchmark",
    {
        "attention_decode": _HERE + "attention:decode",
        "attention_prefill": _HERE + "attention:prefill",
        "gated": _HERE + "rowwise:gated",
        "linear": _HERE + "linear:linear",
        "logits": _HERE + "linear:logits",
        "rms_norm": _HERE + "rowwise:rms_norm",
        "rope_store": _HERE + "rowwise:rope_store",
        "sampling": _HERE + "sampling:sampling",
    },
)
