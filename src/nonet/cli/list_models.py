"""`nonet list`: the packaged models, and which of them are in the cache."""

from __future__ import annotations

import msgspec

from nonet.cli.flags import JsonFlag
from nonet.cli.terminal import note, print_json, table
from nonet.config.memory import show_bytes

__all__ = ["command"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One packaged model, as `--json` shows it."""

    name: str
    description: str
    licence: str | None
    download_bytes: int
    num_bytes: int
    path: str | None  # in the cache


def command(*, json: JsonFlag = False) -> int:
    """List packaged models and what is in the cache."""
    from nonet.weights.packaged import cache_directory, cached_model, packaged_models

    rows = [
        Row(
            name=name,
            description=model.description,
            licence=model.licence or None,
            download_bytes=model.download_bytes,
            num_bytes=model.num_bytes,
            path=None if (path := cached_model(name)) is None else str(path),
        )
        for name, model in sorted(packaged_models().items())
    ]
    if json:
        print_json(rows)
        return 0
    cells = [
        (
            row.name,
            show_bytes(row.num_bytes),
            "in the cache" if row.path else "not fetched",
            row.licence or "no licence stated",
            row.description,
        )
        for row in rows
    ]
    print(table([("name", "size", "state", "licence", "description"), *cells]))
    note(f"cache: {cache_directory()}; fetch a model with: nonet pull NAME")
    return 0
