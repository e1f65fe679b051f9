"""Windows of running text: non-overlapping, chosen by seed, each beginning as the model wants a text to begin."""

from __future__ import annotations

from collections.abc import Mapping

from nonet.bench.quality.base import Spelling, Subject
from nonet.bench.quality.data import read_text, sample
from nonet.core.errors import ConfigError

__all__ = ["TEXT", "text_windows"]

TEXT = "wikitext2/valid.txt"


def text_windows(
    subject: Subject, environ: Mapping[str, str], *, count: int, size: int, seed: int
) -> list[list[int]]:
    """`count` windows of `size` token ids, a beginning of sequence included where the model has one."""
    if not 2 <= size <= subject.max_model_len:
        raise ConfigError(
            f"windows have {size} tokens; the model's context allows 2 to {subject.max_model_len}"
        )
    beginning = _beginning(subject.spelling)
    ids = subject.spelling.encode(read_text(environ, TEXT), add_special=False)
    body = size - len(beginning)
    windows = [ids[at : at + body] for at in range(0, len(ids) - body + 1, body)]
    if count > len(windows):
        raise ConfigError(
            f"{TEXT} has {len(windows)} windows of {size} tokens, fewer than the {count} asked for"
        )
    return [beginning + window for window in sample(windows, count, seed)]


def _beginning(spelling: Spelling) -> list[int]:
    """What the model wants before a text: its ids are those that `encode` puts in front of one."""
    plain = spelling.encode("a", add_special=False)
    whole = spelling.encode("a")
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:at]
