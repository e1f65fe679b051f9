"""What a cached system prompt saves: time to the first token and price of the input, cold against cached, in turn.

    python benchmarks/prompt_caching.py --out benchmarks/<date>-<machine>-prompt-caching
    python benchmarks/prompt_caching.py --tokens 10000 -- --model DIR --dummy-weights --max-model-len 16384

What follows `--` goes to `nonet serve`. Each round asks three questions through the Messages API: under a system prompt
that nobody has sent (cold, without cache_control), under another such one with cache_control (written), and under that
one again with another question (read). The price is what the ledger booked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from nonet.bench.provenance import device_facts, source_commit
from nonet.config.machine import Machine

ROOT = Path(__file__).parents[1]
PRICES = {
    "input_cost_per_token": 1e-6,
    "output_cost_per_token": 0.0,
}  # writes and reads follow: 1.25 and 0.1
CONTROL = {"cache_control": {"type": "ephemeral"}}
KINDS = ("cold", "written", "read")
QUESTIONS = ("What may I ask you?", "Who are you, please?")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question."""

    kind: str
    ttft_s: float
    prompt_tokens: int
    read_tokens: int
    written_tokens: int
    cost: str


def main() -> int:
    args = _parse()
    turns: list[Turn] = []
    with tempfile.TemporaryDirectory() as folder, _served(args, Path(folder)) as (client, model):
        words = _words_for(client, model, args.tokens)
        for number in range(-1, args.rounds):  # the first warms up
            fresh, kept = (_system(f"{kind} {number}", words) for kind in ("cold", "kept"))
            asked = (
                (fresh, QUESTIONS[0]),
                ({**kept, **CONTROL}, QUESTIONS[0]),
                ({**kept, **CONTROL}, QUESTIONS[1]),
            )
            for kind, (system, question) in zip(KINDS, asked, strict=True):
                turn = _ask(client, kind, _body(model, system, question))
                if number >= 0:
                    turns.append(turn)
                    print(turn, flush=True)
    _report(args, turns)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tokens", type=int, default=1500, help="of the system prompt, about")
    add("--rounds", type=int, default=8)
    add("--out", type=Path, help="folder of results.json")
    add("serve", nargs="*", help="options of nonet serve", default=[])
    return parser.parse_args()


@contextlib.contextmanager
def _served(args: argparse.Namespace, folder: Path) -> Iterator[tuple[httpx.Client, str]]:
    """A server with a ledger and prices, and the name of its model."""
    prices = folder / "prices.json"
    prices.write_text(json.dumps({"served": PRICES}))
    command = [
        sys.executable, "-m", "nonet.cli.main", "serve", "--port", "0", "--served-name", "served",
        "--gateway", "ledger", "--data-dir", str(folder / "data"), "--price-table", str(prices), *args.serve,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next((line.split()[2] for line in process.stdout if "listening on" in line), None)
        if url is None:
            raise SystemExit("the server did not start")
        with httpx.Client(base_url=url, timeout=300) as client:
            yield client, "served"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _words_for(client: httpx.Client, model: str, tokens: int) -> int:
    """How many rules make a system prompt of that many tokens."""
    sizes = []
    for words in (10, 110):
        body = _body(model, _system("sized", words), QUESTIONS[0])
        answer = client.post("/v1/messages/count_tokens", json=body).json()
        sizes.append(answer["input_tokens"])
    return round((tokens - sizes[0]) * 100 / (sizes[1] - sizes[0])) + 10


def _system(name: str, words: int) -> dict[str, Any]:
    rules = " ".join(f"Rule {number}: be kind." for number in range(words))
    return {"type": "text", "text": f"You are {name}. {rules}"}


def _body(model: str, system: dict[str, Any], question: str) -> dict[str, Any]:
    said = [{"role": "user", "content": question}]
    return {"model": model, "system": [system], "messages": said}


def _ask(client: httpx.Client, kind: str, body: dict[str, Any]) -> Turn:
    """Stream an answer of a few tokens; its time to the first one, its usage, and what the ledger added."""
    before = _booked(client)
    usage: dict[str, Any] = {}
    first_s = 0.0
    sampling = {"max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}
    began_s = time.perf_counter()
    with client.stream("POST", "/v1/messages", json={**body, **sampling}) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            if event["type"] == "content_block_delta":
                first_s = first_s or time.perf_counter()
            usage = event.get("usage", usage)
    read, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    total = usage["input_tokens"] + read + written
    return Turn(kind, first_s - began_s, total, read, written, str(_booked(client) - before))


def _booked(client: httpx.Client) -> Decimal:
    lines = client.get("/v1/usage").json()["data"]
    return sum((Decimal(line["cost"]) for line in lines), Decimal(0))


def _report(args: argparse.Namespace, turns: list[Turn]) -> None:
    lines = [
        "| turn | prompt tokens | read | written | TTFT median ms | min | max | input cost of a turn |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_kind = {kind: [turn for turn in turns if turn.kind == kind] for kind in KINDS}
    for kind, found in by_kind.items():
        times = sorted(1e3 * turn.ttft_s for turn in found)
        one = found[-1]
        lines.append(
            f"| {kind} | {one.prompt_tokens} | {one.read_tokens} | {one.written_tokens} "
            f"| {statistics.median(times):.1f} | {times[0]:.1f} | {times[-1]:.1f} | {one.cost} |"
        )
    cold, read = (
        statistics.median(turn.ttft_s for turn in by_kind[kind]) for kind in ("cold", "read")
    )
    paid, saved = (Decimal(by_kind[kind][-1].cost) for kind in ("cold", "read"))
    lines += [
        "",
        f"TTFT {100 * (read / cold - 1):+.1f} %, price of the input {100 * (saved / paid - 1):+.1f} %",
    ]
    print("\n".join(lines))
    if args.out is None:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "command": ["python", "benchmarks/prompt_caching.py", *sys.argv[1:]],
        "commit": source_commit(),
        "device": device_facts(Machine.detect()),
        "load_average": os.getloadavg(),
        "turns": [asdict(turn) for turn in turns],
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=1))
    (args.out / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
