"""What every cache of answers offers to the operator's routes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["KeepsAnswers"]


@runtime_checkable
class KeepsAnswers(Protocol):
    """A layer that keeps answers. Counts are of entries."""

    name: str

    def show(self) -> dict[str, Any]:
        """Entries, bytes, and what else there is to know, without any text of a client."""
        ...

    def count(self, tenant: str | None = None) -> int:
        """How many `purge` would drop."""
        ...

    def purge(self, tenant: str | None = None) -> int:
        """Drop everything, or one tenant's. What is being made now is not kept either."""
        ...
