"""Token ids, decoding and chat templates against transformers, live: slow, because its GGUF conversion is."""

from __future__ import annotations

from functools import lru_cache

import pytest
from tests.oracles import quick_gguf
from tests.real_models import real_model
from text_samples import REAL_MODELS, text_samples
from tokenizers import normalizers, pre_tokenizers

from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer, load_tokenizer

pytestmark = [pytest.mark.models, pytest.mark.slow]

# transformers merges runs of spaces in Gemma pair by pair and reads a typed U+2581 as a space; the model's own
# SentencePiece cuts out runs of up to 31, as llama.cpp does. Up to 31 spaces the two agree.
GEMMA_DIFFERS = {"long spaces"}


@lru_cache
def reference(model: str):
    """transformers' tokenizer with the parts of the models' own that its GGUF conversion forgets."""
    from transformers import AutoTokenizer

    path = real_model(model)
    with quick_gguf():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    if model == "smollm2":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if model.startswith("qwen"):
        backend.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize("model", REAL_MODELS)
def test_ids_and_text_equal_transformers(model: str) -> None:
    ours, theirs = load_tokenizer(real_model(model)), reference(model)
    for group, texts in text_samples().items():
        if model.startswith("gemma") and group in GEMMA_DIFFERS:
            assert [ours.encode(text) for text in texts] != [theirs.encode(text) for text in texts]
            continue
        for text in texts:
            ids = ours.encode(text)
            assert ids == theirs.encode(text), (group, text)
            for skip in (True, False):
                assert ours.decode(ids, skip_special=skip) == theirs.decode(
                    ids, skip_special_tokens=skip
                )


@pytest.mark.parametrize("model", REAL_MODELS)
def test_special_ids_and_names_equal_transformers(model: str) -> None:
    ours, theirs = load_tokenizer(real_model(model)), reference(model)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids[0] == theirs.eos_token_id
    assert ours.vocab_size == len(theirs)
    for token_id in sorted(ours.special_ids):
        assert ours.id_to_token(token_id) == theirs.convert_ids_to_tokens(token_id)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü<&'"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": 'Adds <two> numbers & "more" – ünïcode',
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "  What's 1 + 1? <|im_end|> 🙂\n"}
ASSISTANT = {"role": "assistant", "content": "2"}
CONVERSATIONS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER],
    "system and turns": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
    "late system": [USER, SYSTEM, USER],
    "only system": [SYSTEM],
    "empty content": [{"role": "user", "content": ""}],
    "long": [USER, ASSISTANT] * 50,
}
WITH_CALLS = {
    "call": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "call with text": [
        USER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
    ],
    "result": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
        ASSISTANT,
    ],
}


@pytest.mark.parametrize("model", ["smollm2", "qwen2.5-coder-0.5b"])
@pytest.mark.parametrize("prompted", [True, False])
def test_chats_equal_transformers(model: str, prompted: bool) -> None:
    tokenizer, theirs = load_tokenizer(real_model(model)), reference(model)
    template = ChatTemplate.from_tokenizer(tokenizer)
    shapes = CONVERSATIONS | (WITH_CALLS if model.startswith("qwen") else {})
    for name, messages in shapes.items():
        for tools in (None, [], [TOOL], [TOOL, TOOL]):
            expected = theirs.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompted
            )
            found = template.render(messages, tools=tools, add_generation_prompt=prompted)
            assert found == expected, (name, tools)
            assert tokenizer.encode(found, add_special=False) == theirs.encode(
                expected, add_special_tokens=False
            )


def test_text_parts_read_as_the_joined_text() -> None:
    tokenizer: Tokenizer = load_tokenizer(real_model("smollm2"))
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = ChatTemplate.from_tokenizer(tokenizer).render([{"role": "user", "content": parts}])
    joined = [{"role": "user", "content": "one\ntwo"}]
    assert found == reference("smollm2").apply_chat_template(
        joined, tokenize=False, add_generation_prompt=True
    )
