"""What goes to the terminal: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import msgspec

from nonet.config.memory import show_bytes

__all__ = ["Progress", "note", "print_json", "progress", "table"]

# Back to the line's start, and nothing on it.
CLEARED = "\r\x1b[K"


class Progress(Protocol):
    """Called with what is done and the whole, in one unit."""

    def __call__(self, done: int, total: int, /) -> None: ...


def note(text: str) -> None:
    """A remark that is no part of the result; a bar that stands there makes room."""
    room = CLEARED if sys.stderr.isatty() else ""
    print(f"{room}{text}", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """The result as JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the last one as it is.

    >>> print(table([("a", "bb"), ("ccc", "d")]))
    a    bb
    ccc  d
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


@contextmanager
def progress(label: str, unit: str) -> Iterator[Progress]:
    """A bar on standard error, and nothing at all where that is no terminal; `unit` "B" shows sizes and rate."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, /: None
        return
    bar = _Bar(label, unit)
    try:
        yield bar.show
    finally:
        bar.clear()


class _Bar:
    WIDTH = 24
    EVERY_S = 0.1

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        self._start_s = time.monotonic()
        self._shown_s = 0.0

    def show(self, done: int, total: int, /) -> None:
        now = time.monotonic()
        if now - self._shown_s < self.EVERY_S and done < total:
            return
        self._shown_s = now
        filled = self.WIDTH * min(done, total) // max(1, total)
        bar = "█" * filled + "░" * (self.WIDTH - filled)
        line = f"{CLEARED}{self._label} {bar} {self._counts(done, total, now)}"
        print(line, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print(CLEARED, end="", file=sys.stderr, flush=True)

    def _counts(self, done: int, total: int, now: float) -> str:
        rate = done / max(1e-6, now - self._start_s)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        if self._unit != "B":
            return f"{done}/{total} {self._unit}{left}"
        return f"{show_bytes(done)} of {show_bytes(total)}, {show_bytes(rate)}/s{left}"
