"""Family names to blocks."""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["FAMILIES"]

FAMILIES = Catalogue(
    "model family",
    {
        "llama": "nonet.models.llama:LlamaBlock",
        "mistral": "nonet.models.llama:LlamaBlock",
        "qwen2": "nonet.models.llama:LlamaBlock",
        "qwen3": "nonet.models.llama:LlamaBlock",
        "gemma3": "nonet.models.gemma:GemmaBlock",
    },
)
