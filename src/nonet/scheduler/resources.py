"""The seam: what else is scarce? What sequences need to run besides KV blocks and a seat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from nonet.core.request import Request
from nonet.scheduler.sequence import Sequence

__all__ = ["Nothing", "Resources"]


class Resources(Protocol):
    """Told about every request and sequence; decides who may start. Never blocks."""

    def enter(self, request: Request) -> None:
        """A request arrives; InvalidRequestError when it asks for what there is not."""
        ...

    def startable(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """Those of `waiting` that could start now, in their order; a caller that starts one does so before the next.

        Nobody may be passed over for ever.
        """
        ...

    def start(self, seq: Sequence) -> None:
        """The sequence runs from now on; `startable` has just named it."""
        ...

    def stop(self, seq: Sequence) -> None:
        """The sequence was preempted or has ended, and no step in flight uses what it had."""
        ...

    def leave(self, seq: Sequence) -> None:
        """The sequence has ended; `stop` may still follow."""
        ...

    def check_integrity(self) -> list[str]:
        """What is wrong; empty when all is well."""
        ...


class Nothing:
    """Blocks and seats are all there is to share."""

    def enter(self, request: Request) -> None:
        return None

    def startable(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        return iter(waiting)

    def start(self, seq: Sequence) -> None:
        return None

    def stop(self, seq: Sequence) -> None:
        return None

    def leave(self, seq: Sequence) -> None:
        return None

    def check_integrity(self) -> list[str]:
        return []
