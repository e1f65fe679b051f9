"""What a caller may say about cached answers, from headers: every client can send those.

`Cache-Control` counts as HTTP has it: no-store, no-cache, max-age. `X-Nonet-Cache: sampled` says that an answer which
was drawn at random for an equal request will do.
"""

from __future__ import annotations

import math

from starlette.types import Scope

from nonet.gateway.answer import CacheWishes

__all__ = ["cache_wishes"]

NONE = CacheWishes()


def cache_wishes(scope: Scope) -> CacheWishes:
    """The wishes in a call's headers; directives that are not known are ignored, as HTTP asks."""
    control = consent = b""
    for name, value in scope["headers"]:
        if name == b"cache-control":
            control += b"," + value
        elif name == b"x-nonet-cache":
            consent = value
    if not control and not consent:
        return NONE
    directives = {
        key.strip().lower(): value.strip(' "')
        for part in control.decode("latin-1").split(",")
        for key, _, value in [part.partition("=")]
    }
    return CacheWishes(
        no_cache="no-cache" in directives,
        no_store="no-store" in directives,
        max_age_s=_seconds(directives.get("max-age")),
        allow_sampled=consent.strip().lower() == b"sampled",
    )


def _seconds(text: str | None) -> float | None:
    """A max-age that is no number counts as 0, the careful reading."""
    if text is None:
        return None
    return (
        float(text)
        if text.isascii() and text.isdigit() and len(text) < 16
        else 0.0
        if text
        else math.inf
    )
