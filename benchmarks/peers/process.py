"""An engine in a process of its own, asked over pipes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.cases import Case, Job, Turn

__all__ = ["ProcessEngine"]


class ProcessEngine:
    """Starts `python -m peers.<peer>` and waits until its model is loaded."""

    def __init__(
        self, peer: str, python: Path, job: Job, environment: dict[str, str], timeout_s: float
    ) -> None:
        self._timeout_s = timeout_s
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        job_file = Path(self._folder.name, "job.json")
        job_file.write_text(json.dumps(dataclasses.asdict(job)))
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        command = [str(python), "-m", f"peers.{peer}", str(job_file), str(theirs_in), str(theirs_out)]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parent.parent,
                env=environment,
                stdout=log,
                stderr=log,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._requests = os.fdopen(ours_out, "w", 1)
        self._answers = os.fdopen(ours_in)
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.version: str = hello["version"]
        self.load_s: float = hello["load_s"]

    def turn(self, case: Case, part: str) -> Turn:
        """Time `case` on prompts of its own; `part` names them."""
        first_s = self._ask(case, f"{part} one", 1)
        if case.output_tokens == 1:
            return Turn(first_s, None)
        return Turn(first_s, self._ask(case, f"{part} all", case.output_tokens))

    def close(self) -> None:
        """End the process and those it left behind."""
        with contextlib.suppress(ProcessLookupError):  # it may be gone
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._requests.close()
        self._answers.close()
        self._folder.cleanup()

    def _ask(self, case: Case, part: str, output_tokens: int) -> float:
        asked = {"case": case.name, "part": part, "output_tokens": output_tokens}
        self._requests.write(json.dumps(asked) + "\n")
        seconds: float = self._answer()["seconds"]
        return seconds

    def _answer(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if select.select([self._answers], [], [], 1.0)[0]:
                line = self._answers.readline()
                if line:
                    answer: dict[str, Any] = json.loads(line)
                    return answer
                break
        tail = self._log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the peer ended or said nothing for {self._timeout_s:g} s:\n{tail}")
