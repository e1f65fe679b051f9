"""What the chosen proposer asks for, found before anything is loaded: its second model, and whether ids agree."""

from __future__ import annotations

from pathlib import Path

from nonet.config.compat import refuse_conflicts
from nonet.config.schema import Config
from nonet.config.speculation import Companion, Speculation
from nonet.core.catalogue import parse_spec
from nonet.core.errors import ConfigError
from nonet.quant.formats import UNQUANTIZED, WEIGHT_FORMATS
from nonet.speculate import build_proposer
from nonet.text.tokenizer import load_tokenizer
from nonet.weights.packaged import resolve_model
from nonet.weights.spec import read_spec

__all__ = ["read_speculation"]


def read_speculation(config: Config, model_path: Path) -> Speculation | None:
    """None when nothing is guessed. ConfigError for a proposer or a second model that cannot be used."""
    asked = config.speculation
    if asked.speculate is None:
        return None
    refuse_conflicts(
        {
            "speculate": parse_spec(asked.speculate)[0],
            "kv_prune": parse_spec(config.cache.kv_prune or "")[0],
        }
    )
    needs = build_proposer(asked.speculate, asked.draft_length).needs
    second = None
    if needs.model is not None:
        path = resolve_model(needs.model)
        weight_format = UNQUANTIZED if needs.weight_format == "auto" else needs.weight_format
        second = Companion(
            name=needs.model,
            model_path=str(path),
            spec=read_spec(path),
            weight_format=weight_format,
            held=WEIGHT_FORMATS.build(weight_format),
        )
        if not config.model.dummy_weights and path != model_path:
            _refuse_other_tokens(needs.model, path, model_path)
    return Speculation(
        speculate=asked.speculate,
        draft_length=asked.draft_length,
        max_drafts=needs.max_drafts,
        lookahead_tokens=needs.lookahead_tokens,
        second_model=second,
        pauses=needs.pauses,
    )


def _refuse_other_tokens(name: str, path: Path, model_path: Path) -> None:
    """Token ids must mean the same in both models. Models that hold no vocabulary are taken at their word."""
    theirs, ours = load_tokenizer(path), load_tokenizer(model_path)
    for token_id in range(max(theirs.vocab_size, ours.vocab_size)):
        here, there = ours.id_to_token(token_id), theirs.id_to_token(token_id)
        if here != there:
            raise ConfigError(
                f"the draft model {name!r} has another vocabulary: token id {token_id} is {there!r} in it and {here!r} "
                "in the model; take a draft model of the same family"
            )
