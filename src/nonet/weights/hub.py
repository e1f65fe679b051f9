"""Models by hub id: fetched with huggingface_hub into its own cache, weights and tokenizer files only."""

from __future__ import annotations

from pathlib import Path

from nonet.core.errors import DownloadError

__all__ = ["fetch_from_hub"]

_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
]
_UNWANTED = ["*/*", "consolidated*.safetensors"]  # other formats of the same weights


def fetch_from_hub(repo_id: str, revision: str | None) -> Path:
    """The directory of a snapshot; without a network, one that was fetched before. No code files are fetched."""
    from huggingface_hub import snapshot_download  # slow to import, seldom needed
    from huggingface_hub.errors import HFValidationError

    try:
        directory = snapshot_download(
            repo_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except HFValidationError as error:
        raise DownloadError(f"{repo_id!r} is not a hub id: {error}") from None
    except Exception as error:  # the HTTP library's own errors, of which there are many, are not part of its interface
        at = f" at revision {revision!r}" if revision else ""
        reason = str(error).strip().split("\n")[0]
        raise DownloadError(
            f"the hub model {repo_id!r}{at} could not be fetched: {type(error).__name__}: {reason}. "
            f"If no hub can be reached from here, give a local directory or a GGUF file"
        ) from error
    return Path(directory)
