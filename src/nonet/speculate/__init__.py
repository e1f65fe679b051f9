"""What might come next? Guesses that the next step verifies; named on the command line with `--speculate`."""

from nonet.core.catalogue import Catalogue
from nonet.speculate.base import Proposer

__all__ = ["DRAFT_LENGTHS", "PROPOSERS", "build_proposer"]

PROPOSERS = Catalogue(
    "proposer",
    {
        "draft_model": "nonet.speculate.draft_model:DraftModel",
        "prompt_lookup": "nonet.speculate.prompt_lookup:PromptLookup",
    },
)

DRAFT_LENGTHS = Catalogue(
    "draft length",
    {
        "adaptive": "nonet.speculate.adaptive:AdaptiveLength",
        "fixed": "nonet.speculate.fixed:FixedLength",
    },
)


def build_proposer(speculate: str, draft_length: str) -> Proposer:
    """The proposer of one spec string, inside the length rule of another."""
    length = DRAFT_LENGTHS.build(draft_length)
    proposer: Proposer = length.wrap(PROPOSERS.build(speculate))
    return proposer
