"""Conversations for the ladder: a mix like production's, from the data sets or, without them, from sentences made here.

The shares: chat with one system prompt in common, questions about the same long document, code to be copied with a
small change, answers as JSON, repeats of earlier requests to the letter, and rephrased ones. Output lengths are fixed
(end of sequence is ignored), so every configuration does the same work.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonet.bench.ladder.recorded import json_rows
from nonet.bench.workload import WorkItem, Workload, azure_trace, mix
from nonet.core.errors import ConfigError

__all__ = ["mixed", "sample", "synthetic"]

SYSTEM = "You are a helpful assistant. Answer in plain words, name your sources, and say so when you do not know. "

# kind -> share of the requests
SHARES = {
    "chat": 0.35,
    "document": 0.25,
    "edit": 0.15,
    "json": 0.1,
    "repeat": 0.1,
    "rephrase": 0.05,
}

# Tokens of the shortest output; characters of the longest program to be edited, and what that is at any scale.
MIN_OUTPUT, MAX_CODE, MIN_CODE = 8, 4000, 400

# Of token ids: prompts of their own, prompts that begin as others do, repeats.
SYNTHETIC_SHARES = {"chat": 0.6, "document": 0.3, "repeat": 0.1}

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Where each kind of request gets its words."""

    chat: Callable[[random.Random], str]
    document: Callable[
        [random.Random], tuple[str, str]
    ]  # a text shared by several requests, and a question
    edit: Callable[[random.Random], tuple[str, str]]  # code, and what to change
    json: Callable[[random.Random], str]
    rephrase: Callable[[random.Random, str], str]


def sample(num_requests: int, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """The mix from sentences made here; needs no data. `scale` multiplies the lengths of documents and outputs."""
    texts = _Texts(
        chat=lambda rng: _question(rng),
        document=lambda rng: (_document(rng.randrange(4), int(1500 * scale)), _question(rng)),
        edit=lambda rng: (_code(rng), f"Rename the function to task_{rng.randrange(100)}."),
        json=lambda rng: (
            f"{_question(rng)} Answer with a JSON object that has the fields answer and reason."
        ),
        rephrase=lambda rng, text: f"Please tell me: {text}",
    )
    outputs = [max(MIN_OUTPUT, int(rng_len * scale)) for rng_len in _lengths(num_requests, seed)]
    return _mix("sample", texts, outputs, seed, {"scale": scale})


def synthetic(num_requests: int, *, seed: int = 0, scale: float = 1.0, vocab_size: int) -> Workload:
    """Token ids for random weights: uniform lengths (prompts 32 to 1024, outputs 32 to 512, times `scale`).

    Three in ten prompts begin with one of four long prefixes, as system prompts and documents do; one in ten requests
    repeats an earlier one to the letter.
    """
    plain = mix(
        num_requests,
        prompt=(max(1, round(32 * scale)), round(1024 * scale)),
        output=(max(1, round(32 * scale)), round(512 * scale)),
        seed=seed,
        vocab_size=vocab_size,
    )
    rng = random.Random(f"synthetic {seed}")
    low, high = int(plain.facts["first_id"]), int(plain.facts["last_id"])
    prefixes = [[rng.randint(low, high) for _ in range(round(640 * scale))] for _ in range(4)]
    items: list[WorkItem] = []
    for kind, item in zip(_kinds(SYNTHETIC_SHARES, num_requests, rng), plain.items, strict=True):
        if kind == "repeat" and items:
            items.append(rng.choice(items))
        elif kind == "document":
            prefix = rng.choice(prefixes)[: len(item.prompt_ids)]
            rest = list(item.prompt_ids)[len(prefix) :]
            items.append(replace(item, prompt_ids=[*prefix, *rest]))
        else:
            items.append(item)
    facts = {**plain.facts, "scale": scale}
    return Workload(f"synthetic-{num_requests}", tuple(items), facts)


def mixed(folder: Path, num_requests: int, *, seed: int = 0, scale: float = 1.0) -> Workload:
    """The mix from the data sets in `folder`: mt_bench, qmsum, edit_eval, json_mode_wiki and gptcache_pairs.

    Arrivals and output lengths are those of the Azure conversation trace; how many questions a document gets follows
    the sessions of the Mooncake trace. `scale` multiplies the lengths of documents, passages and outputs.
    """
    turns = [row["turns"][0] for row in json_rows(folder / "mt_bench" / "question.jsonl")]
    meetings = list(json_rows(folder / "qmsum" / "val.jsonl"))
    sessions = _Sessions(folder / "mooncake_trace_fast25" / "conversation.jsonl")
    longest = max(MIN_CODE, int(MAX_CODE * scale))
    edits = [
        (code, str(row["instruction"]))
        for row in json_rows(folder / "edit_eval" / "edit_eval.jsonl")
        if len(code := str(row["input"] or row["context"])) <= longest
    ]
    asks = list(json_rows(folder / "json_mode_wiki" / "questions.jsonl"))
    pairs = list(json_rows(folder / "gptcache_pairs" / "pairs.jsonl"))
    similar = {str(row["origin"]): str(row["similar"]) for row in pairs}
    words = int(1500 * scale)

    def document(rng: random.Random) -> tuple[str, str]:
        meeting = meetings[sessions.next(rng) % len(meetings)]
        lines = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
        text = " ".join(" ".join(lines).split()[:words])
        return text, rng.choice(meeting["specific_query_list"])["query"]

    def chat(rng: random.Random) -> str:
        return str(rng.choice(turns) if rng.random() < 0.6 else rng.choice(pairs)["origin"])

    texts = _Texts(
        chat=chat,
        document=document,
        edit=lambda rng: rng.choice(edits),
        json=lambda rng: _json_ask(rng.choice(asks), int(200 * scale)),
        rephrase=lambda rng, text: similar.get(text) or f"Please tell me: {text}",
    )
    arrivals, outputs = _azure_rows(folder, num_requests, seed, scale)
    made = _mix("mixed", texts, outputs, seed, {"scale": scale, "data": "NONET_DATA"})
    items = tuple(
        replace(item, arrival_s=at) for item, at in zip(made.items, arrivals, strict=True)
    )
    return replace(made, items=items)


def _azure_rows(folder: Path, count: int, seed: int, scale: float) -> tuple[list[float], list[int]]:
    """Arrivals from 0 and output lengths of rows that follow each other, from a place that the seed decides."""
    trace = azure_trace(
        folder, "conv", num_requests=1 << 20, max_model_len=1 << 20, length_scale=scale
    )
    start = random.Random(f"azure {seed}").randrange(max(1, len(trace.items) - count))
    rows = trace.items[start : start + count]
    if len(rows) < count:
        raise ConfigError(
            f"num_requests is {count}; the Azure trace has {len(trace.items)} rows, give at most as many"
        )
    return [row.arrival_s - rows[0].arrival_s for row in rows], [
        max(MIN_OUTPUT, row.output_len) for row in rows
    ]


class _Sessions:
    """Which document a request is about: as many requests follow each other about one as a session of the trace has.

    Requests that share their first block of 512 tokens (after block 0, which all share) are one session.
    """

    def __init__(self, file: Path) -> None:
        counts = Counter(row["hash_ids"][1] for row in json_rows(file) if len(row["hash_ids"]) > 1)
        self._sizes = list(counts.values())
        self._left = 0
        self._number = -1

    def next(self, rng: random.Random) -> int:
        """The number of the session that the next request belongs to."""
        if not self._left:
            self._number += 1
            self._left = rng.choice(self._sizes)
        self._left -= 1
        return self._number


def _mix(
    name: str,
    texts: _Texts,
    outputs: Sequence[int],
    seed: int,
    facts: Mapping[str, int | float | str],
) -> Workload:
    rng = random.Random(seed)
    kinds = _kinds(SHARES, len(outputs), rng)
    items: list[WorkItem] = []
    plain: list[str] = []  # questions that may be rephrased later
    for kind, output_len in zip(kinds, outputs, strict=True):
        if kind == "repeat" and items:
            items.append(rng.choice(items))
            continue
        if kind == "rephrase" and plain:
            messages = _chat(texts.rephrase(rng, rng.choice(plain)))
        elif kind == "document":
            text, question = texts.document(rng)
            messages = _chat(question, about=text)
        elif kind == "edit":
            code, wish = texts.edit(rng)
            messages = _chat(f"{wish} Give the whole program.\n\n{code}")
        elif kind == "json":
            messages = _chat(texts.json(rng))
        else:
            plain.append(texts.chat(rng))
            messages = _chat(plain[-1])
        items.append(WorkItem((), output_len, messages=messages))
    items = [replace(item, extra={"temperature": 0.0}) for item in items]
    return Workload(f"{name}-{len(items)}", tuple(items), {"seed": seed, **facts})


def _kinds(shares: Mapping[str, float], count: int, rng: random.Random) -> list[str]:
    """As many of each kind as its share says, shuffled; the first kind fills up, and comes first."""
    first, *others = shares
    kinds = [kind for kind in others for _ in range(round(shares[kind] * count))][: count - 1]
    kinds += [first] * (count - 1 - len(kinds))
    rng.shuffle(kinds)
    return [first, *kinds]


def _chat(text: str, about: str = "") -> Messages:
    system = SYSTEM * 3 + (f"\n\nThe document:\n{about}" if about else "")
    return {"role": "system", "content": system}, {"role": "user", "content": text}


def _lengths(count: int, seed: int) -> list[int]:
    """Output lengths with a long tail, as conversations have."""
    rng = random.Random(f"lengths {seed}")
    return [min(1000, int(rng.lognormvariate(5.0, 0.7))) for _ in range(count)]


SUBJECTS = (
    "the harbour",
    "a glacier",
    "the old library",
    "a printing press",
    "the night train",
    "an orchard",
)
VERBS = ("changes", "supports", "outlives", "measures", "describes", "replaces")
OBJECTS = (
    "the town around it",
    "its first plan",
    "what people expected",
    "the winter",
    "every map",
    "a long debate",
)


def _question(rng: random.Random) -> str:
    return (
        f"Why do you think {_clause(rng)}, and since when, in about {rng.randrange(20, 90)} words?"
    )


def _document(number: int, num_words: int) -> str:
    """The same text for the same number."""
    rng = random.Random(f"document {number}")
    words: list[str] = []
    while len(words) < num_words:
        words += f"{_clause(rng)}. ".capitalize().split()
    return " ".join(words[:num_words])


def _clause(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}"


def _code(rng: random.Random) -> str:
    name = f"count_{rng.randrange(1000)}"
    body = [f"    total += items[{index}] * {rng.randrange(9)}" for index in range(12)]
    return "\n".join([f"def {name}(items):", "    total = 0", *body, "    return total"])


def _json_ask(row: Mapping[str, Any], num_words: int) -> str:
    context = " ".join(str(row["context"]).split()[:num_words])
    return f"{context}\n\n{row['question']} Answer with a JSON object that has the fields answer and reason."
