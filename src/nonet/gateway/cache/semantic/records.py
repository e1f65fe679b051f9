"""What the semantic cache knows, on disk: questions with what was learned of each, and evidence of partitions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from nonet.embed.base import Vectors
from nonet.gateway.cache.semantic.evidence import Evidence, State
from nonet.gateway.cache.semantic.partition import Question
from nonet.store.database import Database

__all__ = ["KeptPartition", "KeptQuestion", "Records"]

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS semantic_question (key BLOB PRIMARY KEY, part BLOB NOT NULL, "
    "tenant TEXT NOT NULL, made_s REAL NOT NULL, vector BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS semantic_partition (part BLOB PRIMARY KEY, tenant TEXT NOT NULL, "
    "body BLOB NOT NULL)",
)
PUT_QUESTION = (
    "INSERT OR REPLACE INTO semantic_question (key, part, tenant, made_s, vector, body) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
PUT_LEARNED = "UPDATE semantic_question SET body = ? WHERE key = ?"
DROP_QUESTION = "DELETE FROM semantic_question WHERE key = ?"
QUESTIONS = "SELECT key, part, tenant, made_s, vector, body FROM semantic_question ORDER BY made_s"
PUT_PARTITION = "INSERT OR REPLACE INTO semantic_partition (part, tenant, body) VALUES (?, ?, ?)"
DROP_PARTITION = "DELETE FROM semantic_partition WHERE part = ?"
PARTITIONS = "SELECT part, tenant, body FROM semantic_partition"


class _Learned(msgspec.Struct, array_like=True, frozen=True):
    text: str
    harmless: list[str]
    trials: list[tuple[float, bool]]


class _Proof(msgspec.Struct, array_like=True, frozen=True):
    state: State
    bets: list[float]
    recent: list[bool]


@dataclass(frozen=True, slots=True)
class KeptQuestion:
    part: bytes
    tenant: str
    vector: Vectors
    question: Question


@dataclass(frozen=True, slots=True)
class KeptPartition:
    part: bytes
    tenant: str
    state: State
    bets: list[float]
    recent: list[bool]


class Records:
    """Two tables. Writes are queued, in order; the event loop waits for none of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[list[KeptQuestion], list[KeptPartition]]:
        """Everything; a row that cannot be read is left out and dropped."""

        def read(connection: sqlite3.Connection) -> tuple[list[KeptQuestion], list[KeptPartition]]:
            for statement in SCHEMA:
                connection.execute(statement)
            questions, partitions, lost = [], [], []
            for key, part, tenant, made_s, vector, body in connection.execute(QUESTIONS):
                try:
                    kept = msgspec.msgpack.decode(body, type=_Learned)
                except msgspec.DecodeError:
                    lost.append((key,))
                    continue
                question = Question(key, kept.text, None, made_s, kept.trials, set(kept.harmless))
                row = np.frombuffer(vector, np.float16).astype(np.float32)
                questions.append(KeptQuestion(part, tenant, row, question))
            for part, tenant, body in connection.execute(PARTITIONS):
                proof = msgspec.msgpack.decode(body, type=_Proof)
                partitions.append(
                    KeptPartition(part, tenant, proof.state, proof.bets, proof.recent)
                )
            connection.executemany(DROP_QUESTION, lost)
            return questions, partitions

        return await self._database.write(read)

    def put(self, part: bytes, tenant: str, question: Question, vector: Vectors) -> None:
        packed = vector.astype(np.float16).tobytes()
        row = (question.key, part, tenant, question.made_s, packed, _body(question))
        self._submit(PUT_QUESTION, row)

    def learned(self, question: Question) -> None:
        self._submit(PUT_LEARNED, (_body(question), question.key))

    def drop(self, keys: Iterable[bytes]) -> None:
        rows = [(key,) for key in keys]
        self._database.submit(lambda one: one.executemany(DROP_QUESTION, rows).close())

    def proved(self, part: bytes, tenant: str, evidence: Evidence) -> None:
        proof = _Proof(evidence.state, evidence.bets, list(evidence.recent))
        self._submit(PUT_PARTITION, (part, tenant, msgspec.msgpack.encode(proof)))

    def drop_partition(self, part: bytes) -> None:
        self._submit(DROP_PARTITION, (part,))

    def _submit(self, statement: str, row: tuple[object, ...]) -> None:
        self._database.submit(lambda connection: connection.execute(statement, row).close())


def _body(question: Question) -> bytes:
    kept = _Learned(question.text, sorted(question.harmless), question.trials)
    return msgspec.msgpack.encode(kept)
