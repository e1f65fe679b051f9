"""When newcomers may join those who run; named on the command line with `--batching`."""

from nonet.core.catalogue import Catalogue

__all__ = ["BATCHINGS"]

BATCHINGS = Catalogue(
    "batching",
    {
        "continuous": "nonet.scheduler.batching.continuous:ContinuousBatching",
        "static": "nonet.scheduler.batching.static:StaticBatching",
    },
)
