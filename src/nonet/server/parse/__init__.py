"""What did the model mean? Tool calls in its text, by family of models, and how a call is written."""

from __future__ import annotations

from nonet.core.catalogue import Catalogue

__all__ = ["TOOL_FORMATS", "detected_format"]

TOOL_FORMATS = Catalogue(
    "tool format",
    {
        "hermes": "nonet.server.parse.hermes:Hermes",
        "llama3": "nonet.server.parse.llama3:Llama3",
        "mistral": "nonet.server.parse.mistral:Mistral",
        "mistral_list": "nonet.server.parse.mistral:MistralList",
        "pythonic": "nonet.server.parse.pythonic:Pythonic",
    },
)

# What a template says about the calls that its model was taught to write; the first that occurs decides.
_SIGNS = (
    ("<tool_call>", "hermes"),
    ("[ARGS]", "mistral"),
    ("[TOOL_CALLS]", "mistral_list"),
    ("<|python_tag|>", "llama3"),
    ('"parameters": dictionary of argument name', "llama3"),
    ("<|python_start|>", "pythonic"),
    ("<start_of_turn>", "pythonic"),
)


def detected_format(template: str) -> str:
    """The name of the format that a chat template's model writes; hermes for one that has never heard of tools.

    >>> detected_format("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]")
    'mistral_list'
    """
    return next((name for sign, name in _SIGNS if sign in template), "hermes")
