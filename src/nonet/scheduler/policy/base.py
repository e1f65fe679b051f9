"""The seam: who first, who gives way, and who may enter?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nonet.core.request import Request
from nonet.scheduler.load import Load
from nonet.scheduler.sequence import Sequence

__all__ = ["Policy"]


class Policy(Protocol):
    """Ranks sequences; `order` and `victim` must agree on one order at one time. No method changes a sequence.

    The methods with a body are answers that suit most policies.
    """

    # Whether `displaced` is to be asked at all: it costs an order of the queue in every step.
    displaces: bool = False

    def watch(self, load: Load) -> None:
        """Called once, before anything else: where queues and predicted costs can be read from then on."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """First to run first."""
        ...

    def victim(self, running: Iterable[Sequence], now: float) -> Sequence:
        """The one that gives its blocks back when there are too few: the last in `order`. At least one is given."""
        ...

    def displaced(self, seq: Sequence, now: float) -> Sequence | None:
        """The running sequence that must give its place to `seq`, which waits and finds none; None: `seq` waits."""
        return None

    def retry_after(self, request: Request, now: float) -> float | None:
        """Seconds after which a request that should not enter now may try again; None: it may enter."""
        return None

    def is_background(self, seq: Sequence, now: float) -> bool:
        """Whether `seq` only takes what `background_limit` leaves it."""
        return False

    def background_limit(self, decoding: list[Sequence], limit: int, now: float) -> int:
        """Tokens, at most `limit`, of a step with background sequences in it, beside `decoding` with a token each.

        Streams whose last token is still under way are among `decoding`: they wait for this step's end too.
        """
        return limit

    def prompt_budget(self, decoding: list[Sequence], limit: int, now: float) -> int:
        """Prompt tokens, at most `limit`, that may join a step in which `decoding` get a token each."""
        return limit
