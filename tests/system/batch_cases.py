"""What the tests of batches share: servers that keep things, input files, and waiting for the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server

PRICES = {"input_cost_per_token": 2.5e-7, "output_cost_per_token": 1e-6}
ENDED = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"


def keeping(folder: Path, *layers: str, **more: object) -> dict[str, object]:
    """Options of a gateway with a database, a ledger and prices."""
    (folder / "prices.json").write_text(json.dumps({"fake": PRICES}))
    return {
        "gateway": ["ledger", *layers],
        "data_dir": str(folder / "data"),
        "price_table": str(folder / "prices.json"),
        **more,
    }


def start_keeping(folder: Path, fake: FakeConfig | None = None, **server: object) -> RunningServer:
    return start_server(folder, fake, gateway=keeping(folder), **server)


def chat_body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


def line(custom_id: str, body: object, url: str = CHAT, method: str = "POST") -> str:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def chat_lines(count: int, **fields: Any) -> list[str]:
    return [line(f"line-{n}", chat_body(f"question {n}", **fields)) for n in range(count)]


def upload(client: openai.OpenAI, lines: list[str]) -> str:
    content = "".join(f"{text}\n" for text in lines).encode()
    return client.files.create(file=("input.jsonl", content), purpose="batch").id


def make(client: openai.OpenAI, lines: list[str], endpoint: Any = CHAT, **fields: Any) -> Batch:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=endpoint, completion_window="24h", **fields
    )


def ended(client: openai.OpenAI, batch_id: str, limit_s: float = 30.0) -> Batch:
    return waited(lambda: client.batches.retrieve(batch_id), lambda b: b.status in ENDED, limit_s)


def waited(look: Callable[[], Any], is_there: Callable[[Any], bool], limit_s: float = 30.0) -> Any:
    """The first look that shows what was waited for."""
    end_s = time.monotonic() + limit_s
    while not is_there(seen := look()):
        assert time.monotonic() < end_s, f"not in time: {seen}"
        time.sleep(0.02)
    return seen


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file; none of no file."""
    if file_id is None:
        return []
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
