"""Cuts openapi.json from the published description: `NONET_DATA=... python -m tests.data.openai.extract`.

Kept are the answers that this server gives and what they reach, without prose. Of the unions over all of OpenAI's items
and tools only the kinds that are served here stay, so the cut is stricter than the whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = "openai_openapi/openapi_subset.json"
PROSE = {"description", "example", "examples", "title", "deprecated"}
ROOTS = (
    "ChatCompletionDeleted", "ChatCompletionList", "ChatCompletionMessageList", "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse", "CreateCompletionResponse",
    "Batch", "CreateEmbeddingResponse", "DeleteFileResponse", "ListBatchesResponse", "ListFilesResponse",
    "ListModelsResponse", "OpenAIFile", "Model", "ErrorResponse", "Response", "ResponseItemList",
    "ResponseCompletedEvent", "ResponseContentPartAddedEvent", "ResponseContentPartDoneEvent", "ResponseCreatedEvent",
    "ResponseErrorEvent", "ResponseFailedEvent", "ResponseFunctionCallArgumentsDeltaEvent",
    "ResponseFunctionCallArgumentsDoneEvent", "ResponseInProgressEvent", "ResponseIncompleteEvent",
    "ResponseOutputItemAddedEvent", "ResponseOutputItemDoneEvent", "ResponseReasoningTextDeltaEvent",
    "ResponseReasoningTextDoneEvent", "ResponseTextDeltaEvent", "ResponseTextDoneEvent",
)  # fmt: skip
KEPT = {
    "Annotation": ("UrlCitationBody",),
    "InputContent": ("InputTextContent",),
    "InputItem": ("EasyInputMessage", "Item"),
    "Item": ("InputMessage", "OutputMessage", "FunctionToolCall", "FunctionCallOutputItemParam", "ReasoningItem"),
    "ItemResource": (
        "InputMessageResource", "OutputMessage", "FunctionToolCallResource", "FunctionToolCallOutputResource",
        "ReasoningItem",
    ),
    "OutputItem": ("OutputMessage", "FunctionToolCall", "ReasoningItem"),
    "Tool": ("FunctionTool",),
    "ToolChoiceParam": ("ToolChoiceOptions", "ToolChoiceFunction"),
}  # fmt: skip


def main() -> None:
    whole = json.loads((Path(os.environ["NONET_DATA"]) / SOURCE).read_text())
    schemas = {
        name: _cut(name, _bare(value)) for name, value in whole["components"]["schemas"].items()
    }
    reached: set[str] = set()
    pending = list(ROOTS)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += _references(schemas[name])
    kept = {"components": {"schemas": {name: schemas[name] for name in sorted(reached)}}}
    text = json.dumps(kept, separators=(",", ":")).replace('},"', '},\n"')
    Path(__file__).with_name("openapi.json").write_text(text + "\n")


def _bare(value: Any, *, is_map: bool = False) -> Any:
    """Without prose, and `nullable` in today's words; the names of properties are no keywords."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("nullable") is True and not is_map:
        rest = {key: item for key, item in value.items() if key != "nullable"}
        return {"anyOf": [_bare(rest), {"type": "null"}]}
    return {
        key: _bare(item, is_map=key == "properties" and not is_map)
        for key, item in value.items()
        if is_map or not (key in PROSE or key.startswith("x-"))
    }


def _cut(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name not in KEPT:
        return schema
    union = next(keyword for keyword in ("anyOf", "oneOf") if keyword in schema)
    kept = [one for one in schema[union] if set(_references(one)) & set(KEPT[name])]
    assert kept, f"{name} has none of {KEPT[name]}: {list(_references(schema[union]))}"
    return {union: kept}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item.rpartition("/")[2]
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


if __name__ == "__main__":
    main()
