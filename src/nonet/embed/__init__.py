"""Texts as vectors whose angles tell how alike they are, computed in the process that asks, without torch."""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["EMBEDDERS"]

EMBEDDERS = Catalogue("text encoder", {"bert": "nonet.embed.bert:BertEmbedder"})
