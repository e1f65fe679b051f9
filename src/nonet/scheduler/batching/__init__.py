"""When newcomers may join those who run; named on the command line with `--batching`."""

from nonet.core.catalogue import Catalogue

__all__ = ["BATCHINGS", "USUAL"]

USUAL = "continuous"  # where nothing else is asked for

BATCHINGS = Catalogue(
    "batching",
    {
        "continuous": "nonet.scheduler.batching.continuous:ContinuousBatching",
        "static": "nonet.scheduler.batching.static:StaticBatching",
    },
)
