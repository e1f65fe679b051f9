"""The options as rows: one per field, with type, help and default. Names are unique over all sections."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from nonet.config.schema import Config, Doc

__all__ = ["Option", "options", "sections"]


@dataclass(frozen=True, slots=True)
class Option:
    """One field of one section."""

    section: str
    name: str
    type: Any  # without its annotations
    doc: Doc
    default: object

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"NONET_{self.section}_{self.name}".upper()


def sections() -> dict[str, type]:
    """Section name to its dataclass, in the order of `Config`."""
    hints = get_type_hints(Config)
    return {field.name: hints[field.name] for field in dataclasses.fields(Config)}


def options() -> dict[str, Option]:
    """Option name to its row."""
    rows: dict[str, Option] = {}
    for section, cls in sections().items():
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            plain, doc = _split(hints[field.name])
            assert field.name not in rows, f"two sections have an option {field.name}"
            rows[field.name] = Option(section, field.name, plain, doc, field.default)
    return rows


def _split(hint: Any) -> tuple[Any, Doc]:
    assert get_origin(hint) is not None, "every field is Annotated with a Doc"
    plain, *extras = get_args(hint)
    (doc,) = [extra for extra in extras if isinstance(extra, Doc)]
    return plain, doc
