"""Options of nonet's engine on a script's command line."""

from __future__ import annotations

import argparse
import json

__all__ = ["option"]


def option(text: str) -> tuple[str, object]:
    """OPTION=VALUE, the value as JSON or, where it is none, as text.

    >>> option("max_num_seqs=64"), option("kernels=triton")
    (('max_num_seqs', 64), ('kernels', 'triton'))
    """
    name, is_given, value = text.partition("=")
    if not is_given:
        raise argparse.ArgumentTypeError(f"{text!r} has no value; write OPTION=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
