"""What does a lossy technique cost in quality? One file a task; every configuration is measured on the same items."""

from nonet.core.catalogue import Catalogue

__all__ = ["TASKS"]

TASKS = Catalogue(
    "quality task",
    {
        "continuation": "nonet.bench.quality.continuation:Continuation",
        "gsm8k": "nonet.bench.quality.gsm8k:Gsm8k",
        "jsonschema": "nonet.bench.quality.jsonschema:JsonSchema",
        "longeval": "nonet.bench.quality.longeval:LongEval",
        "passkey": "nonet.bench.quality.passkey:Passkey",
        "perplexity": "nonet.bench.quality.perplexity:Perplexity",
        "piqa": "nonet.bench.quality.piqa:Piqa",
    },
)
