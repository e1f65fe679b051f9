"""`nonet batch submit | wait | fetch | cancel | list`: batches of a running server, by OpenAI's routes."""

from __future__ import annotations

import json as json_module
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from nonet.cli.batch_client import BatchServer
from nonet.cli.flags import JsonFlag
from nonet.cli.terminal import note, print_json, progress, table
from nonet.core.errors import InvalidRequestError

__all__ = ["cancel", "fetch", "list_batches", "submit", "wait"]

POLL_S = 1.0
ENDED = ("completed", "failed", "expired", "cancelled")
FILES = ("output", "error")

BatchId = Annotated[str, Parameter(help="the batch's id, as submit and list show it")]
Url = Annotated[str, Parameter(help="address of the server")]
ApiKey = Annotated[str | None, Parameter(help="key for the server at --url")]
DEFAULT_URL = "http://127.0.0.1:8000"


def submit(
    requests: Annotated[Path, Parameter(help="JSONL file, a request on each line")],
    *,
    wait: Annotated[
        bool, Parameter(help="stay until the batch has ended", negative=(), show_default=False)
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    json: JsonFlag = False,
) -> int:
    """Send a file of requests and begin a batch over it."""
    endpoint = _endpoint(requests)
    server = BatchServer(url, api_key)
    with progress("sending", "B") as show:
        file_id = server.upload(requests, show)
    made = server.create(file_id, endpoint)
    if wait:
        return _told(_ended(server, made["id"]), json)
    print_json(made) if json else print(made["id"])
    return 0


def wait(
    batch_id: BatchId, *, url: Url = DEFAULT_URL, api_key: ApiKey = None, json: JsonFlag = False
) -> int:
    """Stay until a batch has ended, and show how far it is."""
    return _told(_ended(BatchServer(url, api_key), batch_id), json)


def fetch(
    batch_id: BatchId,
    *,
    folder: Annotated[Path, Parameter(help="where the files are written")] = Path(),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    json: JsonFlag = False,
) -> int:
    """Write the output and error files of a batch that has ended, and print their names."""
    server = BatchServer(url, api_key)
    batch = server.batch(batch_id)
    if batch["status"] not in ENDED:
        raise InvalidRequestError(
            f"batch {batch_id!r} is {batch['status']}; its files come when it has ended, see 'nonet batch wait'"
        )
    made: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in FILES:
            file_id = batch.get(f"{kind}_file_id")
            if file_id:
                path = folder / f"{batch['id']}_{kind}.jsonl"
                server.download(file_id, path)
                made[kind] = str(path)
    except OSError as error:
        raise InvalidRequestError(
            f"{str(folder)!r} cannot be written to: {error.strerror or error}"
        ) from None
    if json:
        print_json(made)
    elif made:
        print("\n".join(made.values()))
    else:
        note(f"batch {batch_id} has no files")
    return 0


def cancel(
    batch_id: BatchId, *, url: Url = DEFAULT_URL, api_key: ApiKey = None, json: JsonFlag = False
) -> int:
    """Stop a batch; what has ended stays in its files."""
    batch = BatchServer(url, api_key).cancel(batch_id)
    print_json(batch) if json else print(batch["status"])
    return 0


def list_batches(
    *,
    limit: Annotated[int, Parameter(help="how many, the newest first")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    json: JsonFlag = False,
) -> int:
    """Batches of the server, as far as the key may see them."""
    if limit < 1:
        raise InvalidRequestError(f"--limit is {limit}; give at least 1")
    found = BatchServer(url, api_key).batches(limit)
    if json:
        print_json(found)
    elif found:
        print(table([("batch", "status", "done", "failed", "made"), *map(_row, found)]))
    else:
        note("there are no batches")
    return 0


def _endpoint(path: Path) -> str:
    """Where the requests go: all lines say the same, so the first is asked; the server checks the others."""
    try:
        with path.open("rb") as file:
            url = json_module.loads(file.readline())["url"]
    except OSError as error:
        raise InvalidRequestError(
            f"{str(path)!r} cannot be read: {error.strerror or error}"
        ) from None
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise InvalidRequestError(
            f"the first line of {str(path)!r} is no request of a batch; give custom_id, method, url and body as JSON"
        )
    return url


def _ended(server: BatchServer, batch_id: str) -> dict[str, Any]:
    with progress("running", "requests") as show:
        while True:
            batch = server.batch(batch_id)
            counts = batch["request_counts"]
            show(counts["completed"] + counts["failed"], counts["total"])
            if batch["status"] in ENDED:
                return batch
            time.sleep(POLL_S)


def _told(batch: dict[str, Any], json: bool) -> int:
    """How it ended; 0 when all requests were run."""
    if json:
        print_json(batch)
    else:
        counts = batch["request_counts"]
        print(f"{batch['id']} {batch['status']}: {_done(counts)} done, {counts['failed']} failed")
        for error in (batch.get("errors") or {}).get("data", ()):
            note(f"line {error.get('line')}: {error.get('message')}")
    return 0 if batch["status"] == "completed" else 1


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = batch["request_counts"]
    made = datetime.fromtimestamp(batch["created_at"], UTC).strftime("%Y-%m-%d %H:%M")
    return (batch["id"], batch["status"], _done(counts), str(counts["failed"]), made)


def _done(counts: dict[str, int]) -> str:
    return f"{counts['completed']}/{counts['total']}"
