"""Tasks on a subject that answers from a script: what is asked, what counts as right, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.quality_data import QUESTIONS, write_quality_data

from nonet.bench.quality import TASKS
from nonet.bench.quality.base import TaskResult
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.gsm8k import last_number, marked_number
from nonet.bench.quality.jsonschema import parse_answer
from nonet.bench.quality.likelihood import divergence, log_softmax
from nonet.bench.quality.passkey import hide
from nonet.bench.quality.piqa import choose
from nonet.bench.quality.report import describe
from nonet.bench.quality.run import Candidate, run_tasks
from nonet.core.errors import ConfigError
from nonet.core.given_text import GivenText
from nonet.core.outputs import Completion, RequestOutput, TokenLogprob
from nonet.core.sampling_params import SamplingParams

VOCABULARY = 260


class Bytes:
    """A tokenizer of bytes that puts 256 in front."""

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return [256] * add_special + list(text.encode())


class Scripted:
    """Answers with a function of the prompt's text; a token's logit is higher the nearer it is to `favourite`."""

    spelling = Bytes()

    def __init__(
        self, answer: Callable[[str], str] = lambda _: "", favourite: int = 101, context: int = 4096
    ) -> None:
        self._answer = answer
        self._favourite = favourite
        self.max_model_len = context
        self.asked: list[str] = []
        self.params: list[SamplingParams] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[RequestOutput]:
        texts = [bytes(i for i in ids if i < 256).decode() for ids in prompts]
        answers = [one.text for one in self.ask(texts, [params] * len(texts))]
        return [
            RequestOutput(
                request_id="",
                prompt=None,
                prompt_ids=list(ids),
                outputs=[Completion(index=0, text=answer)],
                prompt_logprobs=[None, *(TokenLogprob(i, self._logprob(i), 1) for i in ids[1:])],
            )
            for ids, answer in zip(prompts, answers, strict=True)
        ]

    def ask(self, questions: Sequence[str], params: Sequence[SamplingParams]) -> list[Completion]:
        self.asked += questions
        self.params += params
        answers = [self._answer(question) for question in questions]
        return [Completion(index=0, text=text, finish_reason="stop") for text in answers]

    def distributions(self, texts: Iterable[GivenText]) -> Iterator[np.ndarray]:
        for text in texts:
            row = -0.01 * np.abs(np.arange(VOCABULARY, dtype=np.float32) - self._favourite)
            yield np.tile(row, (len(text.targets), 1))

    def _logprob(self, token_id: int) -> float:
        return -float(token_id)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quality_data(tmp_path_factory.mktemp("data"))


def measure(spec: str, subject: Scripted, data: Path, folder: Path) -> TaskResult:
    store = DistributionStore(folder)
    result: TaskResult = TASKS.build(spec).measure(subject, {"NONET_DATA": str(data)}, store)
    assert not list(folder.glob("*.npy")), "nothing is kept when there is nothing to compare"
    return result


def values(result: TaskResult) -> dict[str, float]:
    return {one.name: one.interval.value for one in result.measures}


def test_multiple_choice_by_hand(data: Path, tmp_path: Path) -> None:
    """The script's log likelihood of an ending is minus the sum of its bytes, the space in front counted."""
    subject = Scripted()
    result = measure("piqa:n=6", subject, data, tmp_path)
    raw = by_length = 0
    for _, first, second, label in QUESTIONS:
        sums = [-sum(f" {end}".encode()) for end in (first, second)]
        raw += (0 if sums[0] >= sums[1] else 1) == label
        each = [total / len(end) for total, end in zip(sums, (first, second), strict=True)]
        by_length += (0 if each[0] >= each[1] else 1) == label
    assert values(result) == {"accuracy": raw / 6, "accuracy by length": by_length / 6}
    assert raw != by_length, "the two rules must differ somewhere"
    assert subject.asked[0] == f"Question: {QUESTIONS[0][0]}\nAnswer: {QUESTIONS[0][1]}"
    scores = result.details["scores"]
    assert scores[0][0] == -sum(f" {QUESTIONS[0][1]}".encode())  # type: ignore[index]


def test_the_first_of_equals_is_chosen() -> None:
    assert choose([1.0, 1.0]) == 0
    assert choose([1.0, 2.0]) == 1


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("a\n#### 18", "18", "18"),
        ("cost $1,050.50 #### $1,050.50 in all", "1050.5", "1050.5"),
        ("#### -3", "-3", "-3"),
        ("first 4, then 5.", None, "5"),
        ("nothing", None, None),
        ("#### 7\n\nQuestion: #### 8", "7", "8"),
    ],
)
def test_numbers_in_answers(text: str, marked: str | None, last: str | None) -> None:
    assert marked_number(text) == marked
    assert last_number(text) == last


def test_mathematics_counts_marked_and_last_numbers(data: Path, tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        question = prompt.rsplit("Question: ", 1)[1]
        number = int(question.split()[2])
        return {5: "#### 10", 6: "It is 12.", 7: "#### 15", 8: ""}[number]

    subject = Scripted(answer)
    result = measure("gsm8k:n=4,shots=2,max_tokens=9", subject, data, tmp_path)
    assert values(result) == {"strict": 0.25, "flexible": 0.5}
    assert subject.asked[0].count("Question:") == 3
    assert subject.asked[0].startswith("Question: What is 1 plus 1?\nAnswer: It is 2.\n#### 2\n\n")
    assert subject.asked[0].endswith("Question: What is 5 plus 5?\nAnswer:")
    assert (subject.params[0].max_tokens, subject.params[0].temperature) == (9, 0.0)


def test_passkeys_lie_where_they_should() -> None:
    for length in (600, 1000, 3000):
        for depth in (0.0, 0.25, 0.5, 1.0):
            text = hide(Bytes(), "12345", length, depth)
            assert length - 90 < len(Bytes().encode(text)) <= length
            assert text.count("12345") == 2
            before, _, after = text.partition(
                "The pass key is 12345. Remember it. 12345 is the pass key. "
            )
            sentences = [part.count("The grass is green.") for part in (before, after)]
            assert abs(sentences[0] - depth * sum(sentences)) <= 0.5
            assert after.endswith("What is the pass key? The pass key is")


def test_passkeys_are_counted_by_length_and_depth(data: Path, tmp_path: Path) -> None:
    def sees_the_end(prompt: str) -> str:
        at = prompt.index("The pass key is ")
        return prompt[at + 16 : at + 21] if at > len(prompt) - 500 else "00000"

    result = measure(
        "passkey:lengths=900/2000,depths=3,each=2", Scripted(sees_the_end), data, tmp_path
    )
    found = result.details["found by length and depth"]
    assert found == {
        "900": {"0.00": 0.0, "0.50": 1.0, "1.00": 1.0},
        "2000": {"0.00": 0.0, "0.50": 0.0, "1.00": 1.0},
    }
    assert values(result) == pytest.approx(
        {"found": 0.5, "found in 900": 2 / 3, "found in 2000": 1 / 3}
    )
    again = measure("passkey:lengths=900/2000,depths=3,each=2", Scripted(), data, tmp_path)
    other = measure("passkey:lengths=900/2000,depths=3,each=2,seed=1", Scripted(), data, tmp_path)
    assert again.sha256 == result.sha256 != other.sha256


def test_longeval_leaves_out_what_does_not_fit(data: Path, tmp_path: Path) -> None:
    result = measure("longeval", Scripted(lambda _: "It is 1002.", context=1000), data, tmp_path)
    assert values(result) == {"found": 1.0}
    assert "400 lines" in result.notes[0]
    with pytest.raises(ConfigError, match="context of 100 holds none of: 200 lines"):
        measure("longeval", Scripted(context=100), data, tmp_path)


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [("{}", [{}]), (' ```json\n{"a": 1}\n``` ', [{"a": 1}]), ("```\n[]\n```", [[]]), ("Here: {}", []), ("", [])],
)  # fmt: skip
def test_json_in_answers(answer: str, parsed: list[object]) -> None:
    assert parse_answer(answer) == parsed


def test_json_that_parses(data: Path, tmp_path: Path) -> None:
    subject = Scripted(lambda question: '{"a": 1}' if '"object"' in question else "none")
    result = measure("jsonschema", subject, data, tmp_path)
    assert len(subject.asked) == 2, "a schema of 3,000 characters is passed over"
    assert values(result) == {"ends": 1.0, "parses": 0.5, "satisfies the schema": 0.5}
    assert subject.params[0].grammar is None
    wrong = measure("jsonschema", Scripted(lambda _: '{"a": "b"}'), data, tmp_path)
    assert values(wrong) == {"ends": 1.0, "parses": 1.0, "satisfies the schema": 0.0}
    held = Scripted(lambda _: "[]")
    measure("jsonschema:grammar=true", held, data, tmp_path)
    assert [json.loads(one.grammar.text)["type"] for one in held.params if one.grammar] == [
        "object",
        "array",
    ]


def test_a_schema_that_points_elsewhere_fails_without_a_look_there(
    data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "jsonschemabench" / "cases.jsonl"
    file.parent.mkdir()
    schemas = [{"$ref": "http://127.0.0.1:9/none.json"}, {"$ref": "#"}, {"type": "no such"}, {}]
    file.write_text("".join(json.dumps({"schema": schema}) + "\n" for schema in schemas))
    result = measure("jsonschema", Scripted(lambda _: "{}"), tmp_path, tmp_path)
    assert result.measures[2].items == [0.0, 0.0, 0.0, 1.0]


def test_without_a_validator_it_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    result = measure("jsonschema", Scripted(lambda _: "{}"), data, tmp_path)
    assert values(result) == {"ends": 1.0, "parses": 1.0}
    assert "not installed" in result.notes[0]


def test_log_likelihoods_by_hand() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [700.0, 0.0, -700.0]], np.float32)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) + exact.max(
        1, keepdims=True
    )
    np.testing.assert_allclose(log_softmax(logits), exact, rtol=1e-6, atol=1e-6)
    other = log_softmax(np.array([[0.5, 0.0, 0.0], [1.0, 1.0, 1.0]], np.float32))
    expected = (np.exp(exact) * (exact - other)).sum(1)
    np.testing.assert_allclose(divergence(log_softmax(logits), other), expected, rtol=1e-5)
    backwards = divergence(other, log_softmax(logits))  # mutant: the other direction
    assert not np.allclose(backwards, expected, rtol=0.1)


def candidate(name: str, subject: Scripted) -> Candidate:
    @contextmanager
    def opened() -> Iterator[Scripted]:
        yield subject

    return Candidate(name, opened)


def test_configurations_side_by_side(data: Path) -> None:
    candidates = [candidate("a", Scripted(favourite=101)), candidate("b", Scripted(favourite=110))]
    said: list[str] = []
    tables = run_tasks(
        candidates,
        ["perplexity:windows=3,window=40", "continuation:texts=2,prompt=30,output=5", "piqa:n=6"],
        {"NONET_DATA": str(data)},
        said.append,
    )
    assert [line.split(":")[0] for line in said] == ["a"] * 3 + ["b"] * 3
    for table, tokens in ((tables[0], 3 * 39), (tables[1], 2 * 5)):
        first, second = table.rows
        assert [figure.name for figure in first.figures] == ["perplexity"]
        assert [figure.name for figure in second.figures] == ["perplexity", "KL", "top-1 agreement"]
        assert second.details["tokens"] == tokens
        rows = [-0.01 * np.abs(np.arange(VOCABULARY) - at) for at in (101.0, 110.0)]
        p, q = (row - np.log(np.exp(row).sum()) for row in rows)
        assert second.figures[1].interval.value == pytest.approx(
            (np.exp(p) * (p - q)).sum(), rel=1e-4
        )
        assert second.figures[2].interval.value == 0.0
        assert second.figures[0].difference is not None
    piqa = tables[2].rows[1].figures[0]
    assert piqa.difference is not None
    assert piqa.difference.value == 0.0
    text = describe(tables)
    assert "| configuration | perplexity | KL | top-1 agreement |" in text
    assert "no difference" in text


def test_perplexity_by_hand(data: Path, tmp_path: Path) -> None:
    result = measure("perplexity:windows=2,window=50", Scripted(), data, tmp_path)
    row = -0.01 * np.abs(np.arange(VOCABULARY) - 101.0)
    logprobs = row - np.log(np.exp(row).sum())
    text = (data / "wikitext2" / "valid.txt").read_bytes()
    pieces = [text[at : at + 49] for at in range(0, len(text) - 48, 49)]
    by_piece = np.array([-logprobs[list(piece)].mean() for piece in pieces])
    (found,) = result.measures
    assert all(np.abs(by_piece - item).min() < 1e-5 for item in found.items)
    assert found.interval.value == pytest.approx(np.exp(np.mean(found.items)))
    assert result.details["tokens"] == 2 * 49


@pytest.mark.parametrize(
    ("specs", "names", "message"),
    [
        (
            ["perplexity:window=9000"],
            ["a"],
            "windows have 9000 tokens; the model's context allows 2 to 4096",
        ),
        (["perplexity:windows=9999"], ["a"], "fewer than the 9999 asked for"),
        (["perplexity:windows=0"], ["a"], "give at least 1"),
        (["continuation:output=0"], ["a"], "give at least 1 of each"),
        (["passkey:lengths=5000"], ["a"], "do not fit in the context of 4096"),
        (["passkey:lengths=50"], ["a"], "50 tokens do not hold the question"),
        (["passkey:lengths=many"], ["a"], "give lengths such as 256/512"),
        (["jsonschema:max_schema=5"], ["a"], "raise max_schema"),
        (["piqua"], ["a"], "no quality task named 'piqua'. Did you mean 'piqa'?"),
        (["piqa", "piqa"], ["a"], "the task 'piqa' is given twice"),
        (["piqa"], ["a", "a"], "the configuration 'a' is given twice"),
    ],
)
def test_mistakes(specs: list[str], names: list[str], message: str, data: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run_tasks([candidate(name, Scripted()) for name in names], specs, {"NONET_DATA": str(data)})
    assert message in str(error.value)


def test_missing_data_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="NONET_DATA is not set; point it to the folder that holds piqa"
    ):
        run_tasks([candidate("a", Scripted())], ["piqa"], {})
    with pytest.raises(ConfigError, match=r"NONET_DATA must hold piqa/valid.jsonl"):
        run_tasks([candidate("a", Scripted())], ["piqa"], {"NONET_DATA": str(tmp_path)})
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "valid.jsonl").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="one JSON object a line"):
        run_tasks([candidate("a", Scripted())], ["piqa"], {"NONET_DATA": str(tmp_path)})


def test_a_full_disk_is_said_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DistributionStore(tmp_path, is_recording=True)
    monkeypatch.setattr("nonet.bench.quality.distribution_store.SPARE_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="measure fewer texts, or point TMPDIR"):
        store.save(0, np.zeros((1, 4), np.float32))


def test_other_items_are_not_compared(data: Path) -> None:
    other = Scripted()
    other.spelling = type(
        "Upper", (), {"encode": lambda _, text, add_special=True: list(text.upper().encode())}
    )()
    with pytest.raises(ConfigError, match="b and a read different items"):
        run_tasks(
            [candidate("a", Scripted()), candidate("b", other)],
            ["perplexity:windows=1,window=20"],
            {"NONET_DATA": str(data)},
        )
