"""What is asked: prompts as token ids with the number of tokens to generate, from a seed or from a recorded trace.

A trace carries no text, so prompts are made: random ids for the Azure trace, and for the Mooncake trace one fixed run
of ids per block hash, so that equal hashes are equal tokens and the prefix cache finds what it would have found.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from nonet.core.errors import ConfigError

__all__ = ["TRACES", "WorkItem", "Workload", "azure_trace", "data_folder", "mix", "mooncake_trace"]

TRACES = ("azure-conv", "azure-code", "mooncake-conversation", "mooncake-synthetic")

# Tokens that one hash of the Mooncake trace stands for.
MOONCAKE_BLOCK = 512

# Low ids are often control tokens, so random prompts begin above them; the bounds of the published mix.
FIRST_ID, LAST_ID = 1000, 120_000


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request: its prompt, how many tokens to generate, and when a trace says that it came.

    With `messages` it is a conversation for /v1/chat/completions, and `prompt_ids` is empty; `extra` are fields of the
    body.
    """

    prompt_ids: Sequence[int]
    output_len: int
    arrival_s: float = 0.0
    service_tier: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, and how they were made."""

    name: str
    items: tuple[WorkItem, ...]
    facts: dict[str, int | float | str] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(item.prompt_ids) for item in self.items)

    @property
    def output_tokens(self) -> int:
        return sum(item.output_len for item in self.items)

    def digest(self) -> str:
        """SHA-256 of every prompt, length and arrival: equal digests are equal work."""
        sha = hashlib.sha256()
        for item in self.items:
            row: list[object] = [list(item.prompt_ids), item.output_len, round(item.arrival_s, 6)]
            if item.messages:
                row += [list(map(dict, item.messages)), dict(item.extra)]
            sha.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        return sha.hexdigest()


def mix(
    num_requests: int,
    *,
    prompt: tuple[int, int] = (32, 1024),
    output: tuple[int, int] = (32, 512),
    seed: int = 0,
    vocab_size: int = LAST_ID,
) -> Workload:
    """Uniform lengths and ids by seed: first all pairs of lengths, then the ids of each prompt.

    With 512 requests, seed 0 and a vocabulary of at least 120,000 it is the mix of the published GPU numbers.

    >>> mix(512).prompt_tokens, mix(512).output_tokens
    (264418, 143016)
    """
    _check_range("prompt lengths", prompt)
    _check_range("output lengths", output)
    rng = random.Random(seed)
    lengths = [(rng.randint(*prompt), rng.randint(*output)) for _ in range(num_requests)]
    low, high = _id_range(vocab_size)
    items = tuple(
        WorkItem([rng.randrange(low, high) for _ in range(num_prompt)], num_output)
        for num_prompt, num_output in lengths
    )
    name = f"mix-{num_requests}-p{prompt[0]}-{prompt[1]}-o{output[0]}-{output[1]}"
    return Workload(name, items, {"seed": seed, "first_id": low, "last_id": high - 1})


def azure_trace(
    folder: Path,
    kind: str,
    *,
    num_requests: int,
    max_model_len: int,
    speed: float = 1.0,
    length_scale: float = 1.0,
    seed: int = 0,
    vocab_size: int = LAST_ID,
) -> Workload:
    """The first rows of the Azure LLM inference trace of 2023; `kind` is "conv" or "code".

    Arrival times are divided by `speed`, lengths multiplied by `length_scale` and cut to the context.
    """
    _check_scales(speed, length_scale)
    rng = random.Random(seed)
    low, high = _id_range(vocab_size)
    items: list[WorkItem] = []
    clipped, start = 0, None
    with _open(folder / "azure_llm_trace_2023" / f"{kind}.csv") as lines:
        for row, _ in zip(csv.DictReader(lines), range(num_requests), strict=False):
            # The seventh digit of the second is below what datetime keeps.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or at
            num_prompt, num_output, cut = _fit(
                round(int(row["ContextTokens"]) * length_scale),
                round(int(row["GeneratedTokens"]) * length_scale),
                max_model_len,
            )
            clipped += cut
            ids = [rng.randrange(low, high) for _ in range(num_prompt)]
            items.append(WorkItem(ids, num_output, (at - start).total_seconds() / speed))
    facts = _trace_facts(items, seed, speed, length_scale, clipped)
    return Workload(f"azure-{kind}-{len(items)}", tuple(items), facts)


def mooncake_trace(
    folder: Path,
    kind: str,
    *,
    num_requests: int,
    max_model_len: int,
    speed: float = 1.0,
    length_scale: float = 1.0,
    seed: int = 0,
    vocab_size: int = LAST_ID,
) -> Workload:
    """The first rows of the Mooncake trace of FAST 2025; `kind` is "conversation" or "synthetic".

    Lengths are scaled by making each block `round(512 * length_scale)` tokens, so equal hashes stay equal tokens at
    equal places; the factor that results is reported. A prompt beyond the context loses its end, so shared beginnings
    stay.
    """
    _check_scales(speed, length_scale)
    block = max(1, round(MOONCAKE_BLOCK * length_scale))
    factor = block / MOONCAKE_BLOCK
    blocks = _HashBlocks(seed, block, _id_range(vocab_size))
    items: list[WorkItem] = []
    clipped = 0
    with _open(folder / "mooncake_trace_fast25" / f"{kind}.jsonl") as lines:
        for line, _ in zip(lines, range(num_requests), strict=False):
            row = json.loads(line)
            num_prompt, num_output, cut = _fit(
                round(row["input_length"] * factor),
                round(row["output_length"] * factor),
                max_model_len,
            )
            clipped += cut
            ids = blocks.ids(row["hash_ids"], num_prompt)
            items.append(WorkItem(ids, num_output, row["timestamp"] / 1000 / speed))
    facts = _trace_facts(items, seed, speed, factor, clipped)
    return Workload(f"mooncake-{kind}-{len(items)}", tuple(items), facts)


def data_folder(
    environ: Mapping[str, str], holding: str = "azure_llm_trace_2023 and mooncake_trace_fast25"
) -> Path:
    """Where the data sets lie, as NONET_DATA says."""
    value = environ.get("NONET_DATA", "")
    if not value:
        raise ConfigError(f"NONET_DATA is not set; point it to the folder that holds {holding}")
    folder = Path(value)
    if not folder.is_dir():
        raise ConfigError(f"NONET_DATA is {value!r}, which is no folder; point it to the data sets")
    return folder


class _HashBlocks:
    """The tokens that each block hash stands for; a hash met again gives the same ones."""

    def __init__(self, seed: int, size: int, ids: tuple[int, int]) -> None:
        self._seed, self._size, self._ids = seed, size, ids
        self._known: dict[int, list[int]] = {}

    def ids(self, hashes: Iterable[int], length: int) -> list[int]:
        out: list[int] = []
        for block_hash in hashes:
            if len(out) >= length:
                break
            out.extend(self._block(block_hash))
        if (
            len(out) < length
        ):  # a row whose length exceeds its blocks: its tail is shared with nobody
            tail = random.Random(f"{self._seed}:tail:{length}:{out[-1:]}")
            out.extend(tail.randrange(*self._ids) for _ in range(length - len(out)))
        return out[:length]

    def _block(self, block_hash: int) -> list[int]:
        if block_hash not in self._known:
            rng = random.Random(f"{self._seed}:{block_hash}")
            self._known[block_hash] = [rng.randrange(*self._ids) for _ in range(self._size)]
        return self._known[block_hash]


def _fit(num_prompt: int, num_output: int, max_model_len: int) -> tuple[int, int, bool]:
    """Lengths of at least 1 that fit in the context: output at most half of it, the prompt in what is left."""
    output = min(max(1, num_output), max(1, max_model_len // 2))
    prompt = min(max(1, num_prompt), max_model_len - output)
    return prompt, output, (prompt < num_prompt or output < num_output)


def _id_range(vocab_size: int) -> tuple[int, int]:
    high = min(LAST_ID, vocab_size)
    return (FIRST_ID if high > 2 * FIRST_ID else 0), high


def _trace_facts(
    items: Sequence[WorkItem], seed: int, speed: float, length_scale: float, clipped: int
) -> dict[str, int | float | str]:
    return {
        "seed": seed,
        "speed": speed,
        "length_scale": length_scale,
        "clipped_rows": clipped,
        "span_s": items[-1].arrival_s if items else 0.0,
    }


def _open(file: Path) -> TextIO:
    try:
        return file.open(encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}; NONET_DATA must hold {file.parent.name}"
        ) from None


def _check_range(what: str, bounds: tuple[int, int]) -> None:
    if not 1 <= bounds[0] <= bounds[1]:
        raise ConfigError(f"{what} are {bounds[0]} to {bounds[1]}; give 1 <= least <= most")


def _check_scales(speed: float, length_scale: float) -> None:
    for name, value in (("speed", speed), ("length_scale", length_scale)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; give a number above 0")
