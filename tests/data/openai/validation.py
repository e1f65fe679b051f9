"""Answers against the published description of OpenAI's API."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

__all__ = ["EVENT_SCHEMAS", "validate"]

DESCRIPTION = json.loads(Path(__file__).with_name("openapi.json").read_text())
EVENT_SCHEMAS: dict[str, str] = {
    schema["properties"]["type"]["enum"][0]: name
    for name, schema in DESCRIPTION["components"]["schemas"].items()
    if name.startswith("Response") and name.endswith("Event")
}


def validate(name: str, value: Any) -> None:
    """jsonschema.ValidationError when `value` is not as the schema `name` says."""
    _validator(name).validate(value)


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**DESCRIPTION, "$ref": f"#/components/schemas/{name}"})
