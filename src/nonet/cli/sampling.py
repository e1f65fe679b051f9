"""Sampling flags of `chat` and `generate`; what is not given is left to the model's own recommendation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import msgspec
from cyclopts import Group, Parameter

from nonet.core.limits import LIMITS
from nonet.core.sampling_params import SamplingParams

__all__ = ["SamplingFlags"]

_GROUP = Group("Sampling", sort_key=50)


def _flag(field: str) -> Parameter:
    return Parameter(help=LIMITS[field].doc, group=_GROUP)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFlags:
    """None leaves a field as the model wants it."""

    max_tokens: Annotated[int | None, _flag("max_tokens")] = None
    temperature: Annotated[float | None, _flag("temperature")] = None
    top_p: Annotated[float | None, _flag("top_p")] = None
    top_k: Annotated[int | None, _flag("top_k")] = None
    min_p: Annotated[float | None, _flag("min_p")] = None
    repetition_penalty: Annotated[float | None, _flag("repetition_penalty")] = None

    def given(self) -> dict[str, int | float]:
        """The fields that were given, by their name in requests too."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, base: SamplingParams) -> SamplingParams:
        """`base` with the given fields changed."""
        return msgspec.structs.replace(base, **self.given())
