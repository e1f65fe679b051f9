"""The semantic cache: hits and false hits on labelled questions, pairs made to deceive it, crossings, look-up times.

    NONET_DATA=... python benchmarks/semantic_cache.py --out benchmarks/<date>-<device>-semantic-cache

Every stream is one partition that starts empty and is asked the questions of a set in a random order; a hit is false
when the labels differ. `would` are all questions that gates and threshold let be a hit, `served` those that went out
after the proof, without being verified. The bounds are one-sided, 95 %, exact (Clopper and Pearson).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nonet.bench.adversarial import Pair, made_from, pairs
from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.semantic import Labelled, Stream, fixed_threshold, read_labelled, run_stream
from nonet.bench.workload import data_folder
from nonet.config.machine import Machine
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.embed import EMBEDDERS
from nonet.embed.base import Embedder, Vectors
from nonet.gateway.answer import Ask, Caller, ChoiceText, Conversation, Outcome, Reply, Usage
from nonet.gateway.cache.semantic.evidence import RATES, Evidence, upper_bound
from nonet.gateway.cache.semantic.gates import differences, marks_of, refusal
from nonet.gateway.cache.semantic.index import Index
from nonet.gateway.cache.semantic.layer import SemanticCache
from nonet.gateway.cache.semantic.partition import Partition, Rules
from nonet.gateway.cache.semantic.settings import ALL_GATES, Settings
from nonet.gateway.site import Site
from nonet.weights.packaged import resolve_model

GATES = {
    "all gates": ALL_GATES,
    "no words gate": ALL_GATES - {"words"},
    "no gates": frozenset[str](),
}
LOOSE = (0.01, 0.05)  # deltas of the runs with fewer gates
PARTS = ("streams", "fixed", "adversarial", "crossings", "times")
FIXED = (0.80, 0.85, 0.90, 0.95, 0.98)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for results.json and results.md")
    parser.add_argument("--deltas", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--crossings", type=int, default=10_000)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure")
    parser.add_argument("--vectors", type=Path, help="folder that keeps vectors between runs")
    args = parser.parse_args()
    embedder: Embedder = EMBEDDERS.load("bert").open(resolve_model("minilm"))
    data = read_labelled(data_folder(os.environ, "banking77, clinc150 and gptcache_pairs"))
    vectors = {one.name: _vectors(one, embedder, args.vectors) for one in data}
    mixed = Labelled(
        "all three",
        [text for one in data for text in one.texts],
        [
            f"{one.name} {label}" if label != "oos" else label
            for one in data
            for label in one.labels
        ],
    )
    vectors[mixed.name] = np.concatenate([vectors[one.name] for one in data])
    data.append(mixed)
    results = _kept(args.out) | {
        "commit": source_commit(),
        "device": device_facts(Machine.detect()),
        "libraries": library_versions(),
    }
    parts: dict[str, Callable[[], Any]] = {
        "streams": lambda: _streams(data, vectors, args.deltas, args.seeds),
        "fixed": lambda: {one.name: fixed_threshold(one, vectors[one.name], FIXED) for one in data},
        "adversarial": lambda: _adversarial(mixed, vectors[mixed.name], embedder),
        "crossings": lambda: asyncio.run(_crossings(embedder, args.crossings)),
        "times": lambda: _times(embedder),
    }
    for name in args.parts:
        results[name] = parts[name]()
    report = _report(results)
    print(report)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "results.md").write_text(report + "\n")


def _kept(folder: Path | None) -> dict[str, Any]:
    """What was measured before, for a run of some parts only."""
    path = folder / "results.json" if folder is not None else None
    if path is None or not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _vectors(data: Labelled, embedder: Embedder, folder: Path | None) -> Vectors:
    kept = folder / f"{data.name}.npy" if folder is not None else None
    if kept is not None and kept.is_file():
        found: Vectors = np.load(kept)
        return found
    found = embedder.embed([embedder.encode(text)[: embedder.max_tokens] for text in data.texts])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, found)
    return found


def _streams(
    data: Sequence[Labelled], vectors: dict[str, Vectors], deltas: Sequence[float], seeds: int
) -> list[dict[str, Any]]:
    rows = []
    for one in data:
        for name, gates in GATES.items():
            is_all = gates == ALL_GATES
            for delta in deltas if is_all else LOOSE:
                for seed in range(seeds if is_all else 1):
                    rules = Rules(delta=delta, gates=gates)
                    stream = run_stream(one, vectors[one.name], rules, seed=seed)
                    row = {"data": one.name, "gates": name, "delta": delta, "seed": seed}
                    rows.append({**row, **stream.score().row()})
    return rows


def _adversarial(
    data: Labelled, vectors: Vectors, embedder: Embedder, delta: float = 0.01
) -> dict[str, Any]:
    """Each pair through a partition that has learned from the whole stream, and where its first question is kept."""
    suite = pairs()
    found: dict[str, Any] = {"pairs": len(suite), "kinds": Counter(pair.kind for pair in suite)}
    kept, asked = (
        embedder.embed([embedder.encode(text) for text in texts])
        for texts in ([pair.kept for pair in suite], [pair.asked for pair in suite])
    )
    found["pass all gates"] = _let_pass(suite)
    likeness = (kept * asked).sum(1)
    found["mean_similarity"] = float(likeness.mean())
    found["fixed"] = {str(limit): int((likeness >= limit).sum()) for limit in FIXED}
    texts = made_from(data.texts)
    changed = embedder.embed([embedder.encode(pair.asked) for pair in _some(texts)])
    for name, gates in GATES.items():
        rules = Rules(delta=delta, gates=gates)
        stream = run_stream(data, vectors, rules, shadow=1.0)
        for pair, vector in zip(suite, kept, strict=True):
            stream.keep(pair.kept, "adversarial", vector, marks_of(pair.kept))
        found[name] = {
            "served": _served(stream, suite, asked),
            "of texts": len(changed),
            "served of texts": _served(stream, _some(texts), changed),
        }
    return found


def _some(made: list[Pair], count: int = 2000) -> list[Pair]:
    return random.Random(0).sample(made, min(count, len(made)))


def _served(stream: Stream, suite: Sequence[Pair], vectors: Vectors) -> dict[str, Any]:
    """Pairs by kind that would be hits, of whatever entry, and some of them."""
    served = [
        (pair, look.question.text)
        for pair, vector in zip(suite, vectors, strict=True)
        if (look := stream.look(vector, marks_of(pair.asked))).fits and look.question is not None
    ]
    shown = [[pair.asked, entry] for pair, entry in served[:5]]
    counts = Counter(pair.kind for pair, _ in served)
    return {"all": len(served), **counts, **({"asked and entry": shown} if shown else {})}


def _let_pass(suite: Sequence[Pair]) -> int:
    """Pairs that no gate refuses, were every entry trusted at every similarity."""
    marks = [(marks_of(pair.asked), marks_of(pair.kept)) for pair in suite]
    return sum(refusal(one, two) is None and not differences(one, two) for one, two in marks)


class _Remembering:
    """Embeds a text once: all crossings ask the same question."""

    def __init__(self, embedder: Embedder) -> None:
        self.dimensions, self.max_tokens = embedder.dimensions, embedder.max_tokens
        self.vocab_size, self.encode = embedder.vocab_size, embedder.encode
        self._embedder = embedder
        self._known: dict[str, Vectors] = {}

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        name = str(token_ids)
        if name not in self._known:
            self._known[name] = self._embedder.embed(token_ids)
        return self._known[name]


async def _crossings(embedder: Embedder, count: int) -> dict[str, int]:
    """The same question from somewhere else: another tenant, model, system prompt, tools, format or sampling."""
    site = Site(model="crossing", fingerprint=b"one")
    layer = SemanticCache(Settings(with_tools=True), site, _Remembering(embedder), dice=lambda: 1.0)
    await layer.start()
    rng = random.Random(0)
    home = _ask({}, 0)
    for number in range(2):
        await _read(await layer.handle(_ask({}, number), _model))
        await layer.settled()
    _prove(layer)
    reply = await layer.handle(home, _model)
    await _read(reply)
    outcomes: Counter[str] = Counter(same=int(reply.outcome.cache == "semantic"))
    for number in range(count):
        changed = {
            name: rng.randrange(1, 1000)
            for name in rng.sample(list(CROSSED), rng.randrange(1, len(CROSSED) + 1))
        }
        reply = await layer.handle(_ask(changed, number), _model)
        outcomes[str(reply.outcome.cache)] += 1
        await reply.pieces.aclose()
    await layer.close()
    return {"asked": count, **outcomes}


CROSSED = ("tenant", "model", "system", "tools", "format", "sampling")


def _prove(layer: SemanticCache) -> None:
    """As if the proof were there, and thousands of entries had turned out well at any similarity."""
    for partition in layer._partitions.values():
        trust(partition)


def trust(partition: Partition) -> None:
    bets = [1e9] * len(RATES)
    partition.evidence = Evidence(0.01, state="serving", bets=bets, recent=[True] * 1000)
    for question in partition.questions.values():
        assert question.belief is not None
        for _ in range(500):
            question.belief.learn(0.75, True, partition.pool)


def _ask(changed: dict[str, int], number: int) -> Ask:
    """One question; `changed` says which surroundings are other ones."""
    tools = [{"name": f"tool {changed['tools']}"}] if "tools" in changed else None
    settings = {"tools": tools, "response_format": changed.get("format")}
    system = f"You are assistant {changed.get('system', 0)}."
    params = SamplingParams(temperature=0.0, max_tokens=10 + changed.get("sampling", 0))
    adapter = f"adapter {changed['model']}" if "model" in changed else ""
    tenant = f"tenant {changed['tenant']}" if "tenant" in changed else ""
    request = Request(
        request_id=f"crossing-{number}-0", prompt_ids=[1], params=params, adapter_id=adapter
    )
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "How do I reset my password?"},
    ]
    return Ask(
        requests=(request,),
        caller=Caller(tenant=tenant),
        conversation=Conversation(messages=messages, settings=settings),
    )


async def _model(ask: Ask) -> Reply:
    async def pieces() -> AsyncGenerator[list[ChoiceText], None]:
        yield [ChoiceText(0, "Click on forgot password.", [1, 2, 3], finish_reason="stop")]

    return Reply(pieces(), Usage(prompt_tokens=1), Outcome(), pending_bytes=lambda: 0)


async def _read(reply: Reply) -> None:
    async for _ in reply.pieces:
        pass


def _times(embedder: Embedder) -> dict[str, Any]:
    """Seconds of a look-up by entries, of the exact scan and of usearch, and of one sentence vector."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100_000, embedder.dimensions)).astype(np.float32)
    rows += 2 * rows[rng.integers(0, 300, len(rows))]  # in clusters, as questions are
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found: dict[str, Any] = {}
    texts = [f"Question {n}: how do I replace the card that was lost in town?" for n in range(50)]
    ids = [embedder.encode(text) for text in texts]
    found["embed"] = _quantiles([_timed(embedder.embed, [one]) for one in ids])
    for count in (10_000, 50_000, 100_000):
        asked = rows[rng.integers(0, count, 200)] + 0.02 * rng.standard_normal(
            (200, embedder.dimensions)
        ).astype(np.float32)
        exact = Index(embedder.dimensions, exact_up_to=10**9)
        for number in range(count):
            exact.add(b"%d" % number, rows[number])
        row = {"exact": _quantiles([_timed(exact.search, one, 8) for one in asked])}
        if count == 100_000:
            graph = Index(embedder.dimensions, exact_up_to=1)
            for number in range(count):
                graph.add(b"%d" % number, rows[number])
            row["usearch"] = _quantiles([_timed(graph.search, one, 8) for one in asked])
            same = [graph.search(one, 1)[0][0] == exact.search(one, 1)[0][0] for one in asked]
            found["usearch_recall_at_1"] = statistics.fmean(same)
        found[str(count)] = row
    return found


def _timed(job: Callable[..., object], *given: object) -> float:
    began_s = time.perf_counter()
    job(*given)
    return time.perf_counter() - began_s


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {
        "p50_ms": 1000 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
    }


def _report(results: dict[str, Any]) -> str:
    lines: list[str] = []
    if "streams" in results:
        lines += [
            "| questions | gates | delta | would-be hits | false | false, 95 % bound | served | false |"
            " hit rate | first served | state |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_stream_line(group) for group in _grouped(results["streams"])]
    if "fixed" in results:
        lines += [
            "",
            "| questions | one threshold | hit rate | false | bound |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {row['threshold']} | {row['hit_rate']:.1%} | {row['false_rate'] or 0:.2%} |"
            f" {row['bound']:.2%} |"
            for name, rows in results["fixed"].items()
            for row in rows
        ]
    for name in ("adversarial", "crossings", "times"):
        if name in results:
            lines += ["", f"{name}: `{json.dumps(results[name])}`"]
    return "\n".join(lines)


def _grouped(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["gates"], row["delta"]), []).append(row)
    return list(groups.values())


def _stream_line(group: list[dict[str, Any]]) -> str:
    """Means over the orders; the bound is of their mean counts, as orders of one set are no new questions."""
    mean = {
        name: statistics.fmean(row[name] for row in group)
        for name in ("would", "would_false", "served", "served_false", "hit_rate")
    }
    first = "/".join(str(row["first_served"] or "-") for row in group)
    states = "/".join(row["state"] for row in group)
    bound = upper_bound(round(mean["would_false"]), round(mean["would"]))
    return (
        f"| {group[0]['data']} | {group[0]['gates']} | {group[0]['delta']:.1%} | {mean['would']:.0f} |"
        f" {mean['would_false']:.1f} | {bound:.2%} | {mean['served']:.0f} |"
        f" {mean['served_false']:.1f} | {mean['hit_rate']:.1%} | {first} | {states} |"
    )


if __name__ == "__main__":
    main()
