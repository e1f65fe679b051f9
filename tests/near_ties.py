"""The near-tie rule: two runs may part only where the first one's two best tokens are almost equally likely."""

from __future__ import annotations

from collections.abc import Sequence

from nonet.core.outputs import RequestOutput

__all__ = ["NEAR_TIE", "count_flips"]

NEAR_TIE = 0.05  # of log probability, between the best and the second best token


def count_flips(base: Sequence[RequestOutput], other: Sequence[RequestOutput]) -> int:
    """How many requests part at a near tie; AssertionError where they part elsewhere.

    The base run must have been made with logprobs of at least 2.
    """
    assert len(base) == len(other)
    flips = 0
    for one, two in zip(base, other, strict=True):
        ours, theirs = one.outputs[0], two.outputs[0]
        if ours.token_ids == theirs.token_ids:
            continue
        pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
        place = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
        assert place is not None, (
            f"{one.prompt!r}: lengths {len(ours.token_ids)} and {len(theirs.token_ids)}"
        )
        assert ours.logprobs is not None, "the base run has no log probabilities"
        top = ours.logprobs[place].top
        gap = top[0][1] - top[1][1]
        assert gap < NEAR_TIE, f"{one.prompt!r} parts at token {place}, where the gap is {gap:.3f}"
        flips += 1
    return flips
