"""Times the Triton kernels and whole steps of the Llama-3.1-8B shape on one GPU, next to the device's own ceilings.

    python -m tests.kernels.gpu_bench [SECTION ...] [--out results.json]

Inputs are random and rotate over more memory than the L2 holds; every time is a median over replays of one CUDA graph,
so launches by the host do not count, except in the prefill of whole steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.kernels.gpu_bench_attention import (
    decode_attention,
    expanded_prefill,
    few_decodes,
    prefill_attention,
    tune_decode,
    tune_decode_of_many,
    tune_prefill,
)
from tests.kernels.gpu_bench_linear import linears, one_row, row_wise, tune_few
from tests.kernels.gpu_bench_steps import chained, whole_steps
from tests.kernels.gpu_timing import Row, ceilings, show


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--out")
    given = parser.parse_args()
    rows = ceilings()
    copy_rate = float(rows[0]["copy_TBps"]) * 1e12
    show(rows)
    sections: dict[str, Callable[[], list[Row]]] = {
        "tune16": lambda: tune_decode(16) + tune_prefill(16),
        "tune64": lambda: tune_decode(64) + tune_prefill(64),
        "tune_many": lambda: tune_decode_of_many("auto"),
        "tune_many_fp8": lambda: tune_decode_of_many("fp8"),
        "tune_many_int8": lambda: tune_decode_of_many("int8"),
        "tune_prefill": lambda: tune_prefill(64) + tune_prefill(64, "fp8"),
        "expanded": expanded_prefill,
        "decode": lambda: decode_attention(64, with_sdpa=True) + few_decodes(64),
        "decode16": lambda: decode_attention(16, with_sdpa=False),
        "prefill": lambda: prefill_attention(64, with_sdpa=True),
        "prefill16": lambda: prefill_attention(16, with_sdpa=False),
        "rows": row_wise,
        "linears": linears,
        "tune_few": tune_few,
        "one_row": one_row,
        "chained": lambda: chained(float8=False) + chained(float8=True),
        "steps": lambda: whole_steps(copy_rate, float8=False),
        "steps8": lambda: whole_steps(copy_rate, float8=True),
    }
    for name in given.sections or sections:
        new = sections[name]()
        show(new)
        rows += new
        torch.cuda.empty_cache()
        if given.out:
            Path(given.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
