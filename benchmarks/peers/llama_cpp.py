"""llama.cpp through its own benchmark programs, which make their own prompts and time prefill and decode apart.

Prefill of one prompt and decode of one sequence come from llama-bench, batches from llama-batched-bench. Every turn is
a process of its own; loading and a warm-up are outside the programs' clocks.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from peers.cases import Case, Job, Turn

__all__ = ["LlamaCpp"]


class LlamaCpp:
    """The engine of one GGUF file."""

    load_s: float | None = None

    def __init__(self, job: Job, programs: Path, version: str) -> None:
        self._job = job
        self._programs = programs
        self.version = version

    def turn(self, case: Case, part: str) -> Turn:
        """`part` is of no use here: the programs choose their prompts."""
        return self._single(case) if case.num_prompts == 1 else self._batch(case)

    def close(self) -> None:
        """Nothing runs between turns."""

    def _single(self, case: Case) -> Turn:
        """A case that makes one token is a prefill; another is a decode at the depth of its prompt."""
        is_prefill = case.output_tokens == 1
        shape = ["-p", str(case.prompt_tokens), "-n", "0"]
        if not is_prefill:
            shape = ["-p", "0", "-n", str(case.output_tokens), "-d", str(case.prompt_tokens)]
        command = [
            str(self._programs / "llama-bench"), "-m", self._job.model_path,
            "-t", str(self._job.threads), "-r", "1", "-o", "json", *shape,
        ]  # fmt: skip
        (found,) = json.loads(_run(command))
        seconds = found["samples_ns"][0] / 1e9
        return Turn(seconds, None) if is_prefill else Turn(None, seconds)

    def _batch(self, case: Case) -> Turn:
        job = self._job
        context = case.num_prompts * (case.prompt_tokens + case.output_tokens) + 256
        command = [
            str(self._programs / "llama-batched-bench"), "-m", job.model_path, "-c", str(context),
            "-b", "2048", "-ub", "512", "-npp", str(case.prompt_tokens),
            "-ntg", str(case.output_tokens), "-npl", str(case.num_prompts),
            "-t", str(job.threads), "-tb", str(job.threads), "--output-format", "jsonl",
        ]  # fmt: skip
        lines = _run(command).splitlines()
        (found,) = [json.loads(line) for line in lines if line.startswith("{")]
        return Turn(found["t_pp"], found["t_pp"] + found["t_tg"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout
