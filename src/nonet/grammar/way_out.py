"""The quickest way to the end of an output, looked for with llguidance's matcher."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush

import numpy as np
from llguidance import LLMatcher

from nonet.grammar.closing import ClosingOrder

__all__ = ["WayOut"]

MOST_TRIED = 2048  # continuations within patterns, a fifth of a second, for one way to the end
FILLED = 4  # tokens of a long count, before it is looked again whether something closes


class WayOut:
    """Looks for the quickest way to the end of an output, and gives up after so many continuations."""

    def __init__(self, order: ClosingOrder) -> None:
        self._order = order
        self._left = MOST_TRIED

    def next(self, inner: LLMatcher) -> list[int]:
        """Tokens that close something, or lead to where something can be closed; none when it has given up."""
        mask = inner.compute_bitmask()
        found = self._order.closing(np.frombuffer(mask, np.int32))
        if found is not None:
            return [found]
        return self._through_pattern(inner, mask) or self._filling(inner)

    def _through_pattern(self, inner: LLMatcher, mask: bytes) -> list[int]:
        """A short way by single characters, as far as a few tries go: what leads to a new place of the pattern first.

        Two places are taken for alike when the same tokens are legal there; of those equally far, two are kept.
        """
        seen, met = Counter([mask]), Counter[tuple[bytes, int]]()
        places: list[tuple[int, int, int, LLMatcher, bytes, list[int]]] = [
            (0, 0, 0, inner, mask, [])
        ]
        stop = max(0, self._left - MOST_TRIED // 4)
        while places and self._left > stop:
            *_, place, legal, way = heappop(places)
            for token_id in self._order.tries(np.frombuffer(legal, np.int32)):
                self._left -= 1
                after = place.deep_copy()
                if after.try_consume_tokens([token_id]) != 1:
                    continue
                follows = after.compute_bitmask()
                longer = [*way, token_id]
                if after.is_accepting() or self._closes(follows):
                    return longer
                met[follows, len(longer)] += 1
                if met[follows, len(longer)] > 2:
                    continue
                seen[follows] += 1
                heappush(places, (seen[follows], len(longer), -self._left, after, follows, longer))
        return []

    def _filling(self, inner: LLMatcher) -> list[int]:
        """Some tokens that say nothing."""
        way: list[int] = []
        place = inner.deep_copy()
        while self._left > 0 and len(way) < FILLED:
            mask = place.compute_bitmask()
            token_id = self._order.filling(np.frombuffer(mask, np.int32))
            if (way and self._closes(mask)) or token_id is None:
                break
            if place.try_consume_tokens([token_id]) != 1:
                break
            way.append(token_id)
        return way

    def _closes(self, mask: bytes) -> bool:
        return self._order.closing(np.frombuffer(mask, np.int32)) is not None
