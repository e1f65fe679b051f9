"""Prompts of three kinds: edits of code, questions about meetings, chat."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nonet.bench.workload import data_folder
from nonet.engine.llm import LLM
from nonet.engine.prepare import PromptReader

__all__ = ["QUESTIONS", "read_prompts"]


def read_prompts(arguments: argparse.Namespace, llm: LLM) -> Iterator[tuple[str, list[int]]]:
    reader = PromptReader(Path(llm.resolved.model_path))
    for name in arguments.data:
        questions = list(QUESTIONS[name](arguments))
        random.Random(arguments.seed).shuffle(questions)
        for question in questions[: arguments.prompts]:
            yield name, reader.chat_ids([{"role": "user", "content": question}])


def _edits(arguments: argparse.Namespace) -> Iterator[str]:
    for row in _lines("edit_eval/edit_eval.jsonl"):
        if len(row["input"]) >= 200:
            task = f"{row['instruction']}\nWrite the whole code again with this change."
            yield f"{task}\n\n```python\n{row['input']}\n```"


def _meetings(arguments: argparse.Namespace) -> Iterator[str]:
    """The part of a meeting that a question is about, up to --words of it."""
    for row in _lines("qmsum/val.jsonl"):
        for asked in row["specific_query_list"][:2]:
            first, last = (int(place) for place in asked["relevant_text_span"][0])
            turns = row["meeting_transcripts"][first : last + 1]
            text = "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in turns)
            words = text.split(" ")[: arguments.words]
            if len(words) >= arguments.words // 2:
                question = f"Answer with what the speakers said, word for word: {asked['query']}"
                yield f"{' '.join(words)}\n\n{question}"


def _chats(arguments: argparse.Namespace) -> Iterator[str]:
    return (row["turns"][0] for row in _lines("mt_bench/question.jsonl"))


QUESTIONS = {"edit_eval": _edits, "qmsum": _meetings, "mt_bench": _chats}


def _lines(name: str) -> Iterator[Mapping[str, Any]]:
    folder, _, _ = name.partition("/")
    with open(data_folder(os.environ, folder) / name, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
