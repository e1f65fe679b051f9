"""What the integer formats check alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError

if TYPE_CHECKING:
    from nonet.kernels.inputs import Inputs

__all__ = ["at_the_head", "check_group", "check_inputs"]

INPUTS: tuple[Inputs, ...] = ("free", "exact", "token", "group")


def check_group(name: str, group: int) -> None:
    """Groups that kernels keep in codes."""
    if group < 0 or group % 16:
        raise ConfigError(
            f"weight format {name!r}: group is {group}; give a multiple of 16, or 0 for one scale an output"
        )


def check_inputs(name: str, given: str) -> Inputs:
    for known in INPUTS:
        if known == given:
            return known
    raise ConfigError(
        f"weight format {name!r}: activations is {given!r}. {did_you_mean(given, list(INPUTS))}"
    )


def at_the_head(inputs: Inputs) -> Inputs:
    """How the output head's inputs are rounded: never by token, since an error there goes straight into the logits."""
    return "exact" if inputs == "exact" else "free"
