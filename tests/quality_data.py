"""A folder in the shape of the data sets, filled with words of this repository that do not change."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["QUESTIONS", "write_quality_data"]

ROOT = Path(__file__).parents[1]

# goal, two solutions, the right one
QUESTIONS = [
    ("Keep tea warm for an hour.", "Pour it into a vacuum flask.", "Pour it into a sieve.", 0),
    ("Dry a wet shoe.", "Fill it with water.", "Fill it with newspaper.", 1),
    ("Find a coin under a wardrobe.", "Shine a torch along the floor.", "Paint the wall.", 0),
    ("Open a stuck jar.", "Hold the lid under hot water, then twist.", "Put the jar in a book.", 0),
    ("Sharpen a pencil.", "Dip it in honey.", "Turn it in a sharpener.", 1),
    ("Cool a drink.", "Add ice.", "Leave it on the stove.", 0),
]


def write_quality_data(folder: Path) -> Path:
    """The folder, with every file that a task reads."""
    _write(folder / "wikitext2" / "valid.txt", (ROOT / "LICENSE").read_text())
    rows = [{"goal": g, "sol1": a, "sol2": b, "label": label} for g, a, b, label in QUESTIONS]
    _write_lines(folder / "piqa" / "valid.jsonl", rows)
    sums = [
        {"question": f"What is {n} plus {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"}
        for n in range(1, 9)
    ]
    _write_lines(folder / "gsm8k" / "test_half.jsonl", sums[4:])
    _write_lines(folder / "gsm8k" / "train_800.jsonl", sums[:4])
    for size, lines in ((200, 4), (400, 200), (680, 200), (1100, 200)):
        record = "".join(f"line {n}: REGISTER_CONTENT is <{1000 + n}>\n" for n in range(lines))
        case = {"expected_number": 1002, "prompt": f"Remember.\n{record}What is in line 2?"}
        _write_lines(
            folder / "longeval" / f"lines_{size}.jsonl", [case, case | {"num_lines": size}]
        )
    schemas = [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "array", "items": {"type": "string"}},
        {"enum": ["x" * 3000]},
    ]
    _write_lines(
        folder / "jsonschemabench" / "cases.jsonl",
        [{"id": str(n), "schema": s} for n, s in enumerate(schemas)],
    )
    return folder


def _write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    _write(file, "".join(json.dumps(row) + "\n" for row in rows))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
