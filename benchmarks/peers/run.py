"""One row of the table: a fresh process on an idle machine, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import llama_cpp
from peers.cases import Job
from peers.idle import busy_share, wait_until_idle
from peers.plan import Entry
from peers.workdir import Workdir

__all__ = ["Row", "Runner"]


@dataclass(frozen=True)
class Row:
    """A measured row, or, with `error` set, why there is none."""

    peer: str
    model: str
    weights: str
    version: str | None
    load_s: float | None
    cases: dict[str, dict[str, Any]]
    busy_before: list[float]  # share of the machine that was busy just before each process
    environment: dict[str, str]  # what was set besides thread counts
    wall_s: float
    error: str | None


class Runner:
    """Runs entries one after the other."""

    def __init__(
        self, workdir: Workdir, job: Job, base_environment: dict[str, str], *,
        waits: bool, idle_timeout_s: float, timeout_s: float, log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._workdir = workdir
        self._job = job
        self._base_environment = base_environment
        self._waits = waits
        self._idle_timeout_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._log = log
        self._busy: list[float] = []

    def run(self, entry: Entry) -> Row:
        """Prepare, wait for an idle machine, measure. A failure becomes the row's error."""
        self._busy = []
        began = time.monotonic()
        environment: dict[str, str] = {}
        found: dict[str, Any] = {}
        error = None
        try:
            job = dataclasses.replace(
                self._job, model_path=str(entry.model_path()), weights=entry.weights
            )
            python = entry.python()
            environment = entry.environment()
            if entry.peer == "llama_cpp":
                programs, version = self._workdir.llama_programs(), self._workdir.llama_version()
                found = llama_cpp.measure(job, programs, version, self._wait)
            else:
                found = self._in_process(entry.peer, python, job, environment)
        except (RuntimeError, OSError, ValueError) as problem:
            error = str(problem)
            self._log(f"  failed: {error.strip().splitlines()[-1] if error.strip() else problem!r}")
        return Row(
            peer=entry.peer,
            model=entry.model.title,
            weights=entry.label,
            version=found.get("version"),
            load_s=found.get("load_s"),
            cases={case["name"]: case for case in found.get("cases", [])},
            busy_before=self._busy,
            environment=environment,
            wall_s=time.monotonic() - began,
            error=error,
        )

    def _wait(self) -> None:
        waited = self._waits
        share = wait_until_idle(timeout_s=self._idle_timeout_s) if waited else busy_share(0.2)
        self._busy.append(round(share, 3))

    def _in_process(
        self, peer: str, python: Path, job: Job, environment: dict[str, str]
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
            log_file = Path(folder, "log")
            job_file.write_text(json.dumps(dataclasses.asdict(job)))
            command = [str(python), "-m", f"peers.{peer}", str(job_file), str(result_file)]
            self._wait()
            with log_file.open("wb") as log:
                status = _run_group(
                    command,
                    {**self._base_environment, **environment},
                    log.fileno(),
                    self._timeout_s,
                )
            if status or not result_file.exists():
                tail = log_file.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"peers.{peer} ended with {status}:\n{tail}")
            result: dict[str, Any] = json.loads(result_file.read_text())
            return result


def _run_group(
    command: list[str], environment: dict[str, str], log: int, timeout_s: float
) -> int | str:
    """Exit status of the command, or "timeout"; the processes it left behind end with it."""
    here = Path(__file__).parent.parent
    process = subprocess.Popen(
        command, cwd=here, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):  # when nothing was left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
