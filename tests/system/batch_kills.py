"""Kills a server at random points of a batch until the batch is done, and checks what is left.

Everything that is checked is read from files and the ledger by code of its own, after the last run: each request once
in the output or the error file, each answered one billed once and at half price, nobody else's.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai

from nonet.store.database import open_for_reading
from tests.system.batch_cases import PRICES, chat_body, ended, line, make, rows, start_keeping
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer

__all__ = ["Kill", "KillReport", "check_all", "dumped", "run_kills"]

FAKE = FakeConfig(step_s=0.01, max_num_seqs=8)
TOKENS = 3
WRONG_EVERY = 50  # one request in so many is refused
PROGRESS = "SELECT status, completed + failed, json_extract(times, '$.in_progress') FROM batches"


@dataclass(frozen=True)
class Kill:
    """One kill, and how long the next server took from its start to the batch's next progress."""

    status: str
    num_settled: int
    resumed_s: float


@dataclass
class KillReport:
    """What a run came to."""

    num_lines: int
    kills: list[Kill] = field(default_factory=list)
    num_output: int = 0
    num_errors: int = 0
    num_billed: int = 0
    cost: str = ""
    seconds: float = 0.0


def run_kills(folder: Path, num_lines: int, num_kills: int, seed: int) -> KillReport:
    """Run one batch through `num_kills` SIGKILLs; AssertionError when anything was lost or done twice."""
    rng = random.Random(seed)
    report = KillReport(num_lines)
    began_s = time.monotonic()
    server = start_keeping(folder, FAKE)
    lines = [line(name, _body(number)) for number, name in enumerate(_names(num_lines))]
    with _client(server) as client:
        batch_id = make(client, lines).id
    for point in _points(rng, num_lines, num_kills):
        status, settled = _wait_for(folder, point, num_lines, rng)
        os.kill(server.process.pid, signal.SIGKILL)
        server.close()
        status, settled = _progress(folder)  # what was acknowledged in between stands too
        start_s = time.monotonic()
        server = start_keeping(folder, FAKE)
        resumed_s = _resumed(folder, status, settled) - start_s
        report.kills.append(Kill(status, settled, round(resumed_s, 3)))
    with _client(server) as client:
        done = ended(client, batch_id, 120)
        assert done.status == "completed"
        output, errors = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert server.stop() == 0
    report.seconds = round(time.monotonic() - began_s, 1)
    booked = _ledger(folder)
    check_all(_names(num_lines), output, errors, booked)
    report.num_output, report.num_errors, report.num_billed = len(output), len(errors), len(booked)
    report.cost = str(sum(cost for _, cost in booked))
    return report


def check_all(
    names: Sequence[str],
    output: Sequence[dict[str, Any]],
    errors: Sequence[dict[str, Any]],
    booked: Sequence[tuple[str, Decimal]],
) -> None:
    """Each name once in one of the files, each in the output billed once, at the price of its own usage."""
    seen = Counter(row["custom_id"] for row in (*output, *errors))
    assert seen == Counter(names), "a request is missing, or answered twice"
    wrong = {name for number, name in enumerate(names) if _is_wrong(number)}
    assert {row["custom_id"] for row in errors} == wrong
    owed = {row["custom_id"]: _price(row["response"]["body"]["usage"]) for row in output}
    bills = Counter(name for name, _ in booked)
    assert bills == Counter(owed.keys()), "a request is billed twice, or not at all"
    assert dict(booked) == owed


def _names(num_lines: int) -> list[str]:
    return [f"line-{number}" for number in range(num_lines)]


def _is_wrong(number: int) -> bool:
    return number % WRONG_EVERY == WRONG_EVERY - 1


def _body(number: int) -> dict[str, Any]:
    fields = {"temperature": "hot"} if _is_wrong(number) else {}
    return chat_body(f"question {number}", **fields) | {"max_tokens": TOKENS}


def _points(rng: random.Random, num_lines: int, num_kills: int) -> list[int]:
    """After how many settled lines to kill: -1 while the input is looked at, `num_lines` while files are written."""
    num_ends = max(1, num_kills // 25)
    middle = sorted(rng.randrange(num_lines) for _ in range(num_kills - 2 * num_ends))
    return [-1] * num_ends + middle + [num_lines] * num_ends


def _wait_for(folder: Path, point: int, num_lines: int, rng: random.Random) -> tuple[str, int]:
    """Return at the point, or a random moment after it."""
    end_s = time.monotonic() + 60
    while True:
        status, settled = _progress(folder)
        is_there = settled >= point and (point < num_lines or status != "in_progress")
        if is_there or status == "completed":
            break
        assert time.monotonic() < end_s, f"no progress: {status}, {settled} of {point}"
        time.sleep(0.001)
    is_middle = point >= 0 and status == "in_progress"
    time.sleep(rng.random() * (0.03 if is_middle else 0.004))  # both ends are over soon
    return status, settled


def _progress(folder: Path) -> tuple[str, int]:
    with closing(open_for_reading(folder / "data" / "nonet.db")) as connection:
        status, settled, began = connection.execute(PROGRESS).fetchone()
    return status, settled if began is not None else -1


def _resumed(folder: Path, status: str, settled: int) -> float:
    """When the batch had got further than where it was killed."""
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        if status == "completed" or _progress(folder) != (status, settled):
            return time.monotonic()
        time.sleep(0.002)
    raise AssertionError(f"the batch stands still at {status}, {settled}")


def _ledger(folder: Path) -> list[tuple[str, Decimal]]:
    """Every row: whose line it is for, and its money."""
    with closing(sqlite3.connect(folder / "data" / "nonet.db")) as connection:
        found = connection.execute("SELECT once, cost_picos FROM ledger").fetchall()
    return [(str(once).partition("/")[2], Decimal(picos).scaleb(-12)) for once, picos in found]


def _price(usage: dict[str, Any]) -> Decimal:
    """Half of the table's price; cached tokens at a tenth of it."""
    paid_in = Decimal(str(PRICES["input_cost_per_token"]))
    paid_out = Decimal(str(PRICES["output_cost_per_token"]))
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    full = (usage["prompt_tokens"] - cached) * paid_in + cached * paid_in / 10
    return (full + usage["completion_tokens"] * paid_out) / 2


def _client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def dumped(report: KillReport) -> dict[str, Any]:
    """The report as JSON, with the spread of the resume times."""
    times = sorted(kill.resumed_s for kill in report.kills)
    return {
        **{name: value for name, value in vars(report).items() if name != "kills"},
        "num_kills": len(times),
        "resumed_s": {"median": times[len(times) // 2], "most": times[-1]},
        "kills": [vars(kill) for kill in report.kills],
    }
