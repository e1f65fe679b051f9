"""One precedence for every option, typed values, and messages that say where and what."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonet.config.load import as_environment, changed, from_options, load
from nonet.config.options import options, sections
from nonet.config.schema import Config
from nonet.core.errors import ConfigError, UnknownNameError

FILE = """\
# a comment
[model]
model = "gemma-3-270m"

[server]
port = 1111
api_keys = ["a", "b"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nonet.toml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("flag", "variable", "in_file", "port", "source"),
    [
        (3333, "2222", True, 3333, "--port"),
        (3333, "2222", False, 3333, "--port"),
        (3333, None, True, 3333, "--port"),
        (None, "2222", True, 2222, "NONET_SERVER_PORT"),
        (None, "2222", False, 2222, "NONET_SERVER_PORT"),
        (None, None, True, 1111, "nonet.toml:6"),
        (None, None, False, 8000, None),
    ],
)
def test_precedence(
    file: Path, flag: int | None, variable: str | None, in_file: bool, port: int, source: str | None
) -> None:
    loaded = load(
        flags={} if flag is None else {"port": flag},
        environ={} if variable is None else {"NONET_SERVER_PORT": variable},
        file=file if in_file else None,
    )
    assert loaded.config.server.port == port
    found = loaded.sources.get("server.port")
    assert (found and found.replace(str(file.parent) + "/", "")) == source


def test_a_flag_at_its_default_still_wins(file: Path) -> None:
    assert load(flags={"port": 8000}, file=file).config.server.port == 8000


def test_nothing_given_is_the_default() -> None:
    loaded = load()
    assert loaded.config == Config()
    assert loaded.sources == {}


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("NONET_MODEL_MAX_MODEL_LEN", "512", 512),
        ("NONET_MODEL_MAX_MODEL_LEN", "none", None),
        ("NONET_MODEL_DTYPE", "float32", "float32"),
        ("NONET_CACHE_PREFIX_CACHE", "off", False),
        ("NONET_CACHE_PREFIX_CACHE", "1", True),
        ("NONET_CACHE_MEMORY_GIB", "1.5", 1.5),
        ("NONET_SERVER_API_KEYS", "a, b,", ("a", "b")),
        ("NONET_SERVER_DRAIN_S", "3", 3.0),
    ],
)
def test_text_becomes_the_type(variable: str, text: str, value: object) -> None:
    loaded = load(environ={variable: text})
    (key,) = loaded.sources
    section, name = key.split(".")
    assert getattr(getattr(loaded.config, section), name) == value


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        ("port", 70000, ["--port: port is 70000", "an integer from 0 to 65535"]),
        ("port", "80", ["port is '80'", "an integer"]),
        ("port", True, ["port is True"]),
        ("num_blocks", 0, ["num_blocks is 0", "of at least 1"]),
        ("dtype", "bfloat", ["dtype is 'bfloat'", "Did you mean 'bfloat16'?"]),
        ("memory_fraction", float("nan"), ["memory_fraction is nan"]),
        ("memory_fraction", 1.5, ["a number from 0.01 to 1"]),
        ("recording", 1, ["recording is 1", "true or false"]),
    ],
)
def test_refused_values_say_what_is_allowed(name: str, value: object, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(flags={name: value})
    for fragment in fragments:
        assert fragment in str(error.value)


def test_environment_values_name_their_variable() -> None:
    with pytest.raises(ConfigError, match="NONET_SERVER_PORT: port is 'many'"):
        load(environ={"NONET_SERVER_PORT": "many"})


def test_unknown_names_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no option named 'num_block'\. Did you mean"):
        from_options({"num_block": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'NONET_SERVER_PORT'"):
        load(environ={"NONET_SERVER_PROT": "3"})
    assert load(environ={"NONET_CACHE": "/somewhere", "NONET_DATA": "/x"}).sources == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nhost = 'a'\nprt = 1\n", r":3: section \[server\] has no option 'prt'. Did you"),
        ("[servr]\nport = 1\n", r":1: no section \[servr\]. Did you mean 'server'"),
        ("\n[server]\ndtype = 'float32'\n", r":3: .*It belongs under \[model\]"),
        ("server.prt = 1\n", r":1: section \[server\] has no option 'prt'"),
        ("server = 3\n", r":1: server is a section; write \[server\]"),
        ("[server]\nport = '80'\n", r":2: port is '80'; give an integer"),
        ("[server\n", r"is not TOML: .*line 1"),
    ],
)
def test_file_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.toml.*" + message.lstrip(":")):
        load(file=path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(file=tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file=tmp_path / "binary.toml")


def test_paths_are_taken_as_text(tmp_path: Path) -> None:
    assert from_options({"model": tmp_path}).model.model == str(tmp_path)


def test_every_option_has_help_and_a_unique_name_and_variable() -> None:
    rows = options()
    assert sum(len(cls.__dataclass_fields__) for cls in sections().values()) == len(rows)
    assert len({row.variable for row in rows.values()}) == len(rows)
    for row in rows.values():
        assert row.doc.text
        assert not row.doc.text.endswith(".")


def test_a_configuration_survives_the_environment() -> None:
    config = from_options(
        {"model": "x", "dtype": "float32", "prefix_cache": False, "api_keys": ("a", "b"), "memory_gib": 0.5}
    )  # fmt: skip
    assert load(environ=as_environment(config)).config == config
    assert as_environment(Config()) == {}


def test_an_option_may_have_a_second_name() -> None:
    assert from_options({"quant": "int4:group=64"}).model.weight_format == "int4:group=64"
    loaded = load(flags={"quant": "int8"})
    assert loaded.sources == {"model.weight_format": "--weight-format"}
    names = [row.doc.alias for row in options().values() if row.doc.alias is not None]
    assert len(set(names)) == len(names)
    assert not set(names) & set(options())


def test_options_changed_by_text() -> None:
    base = from_options({"seed": 3, "dtype": "float32"})
    found = changed(base, {"quant": "fp8", "prefix_cache": "off", "max_model_len": "64"}, "--with")
    assert (found.model.seed, found.model.dtype, found.model.weight_format) == (3, "float32", "fp8")
    assert (found.cache.prefix_cache, found.model.max_model_len) == (False, 64)
    assert changed(base, {}, "--with") == base
    with pytest.raises(ConfigError, match="--with: max_model_len is '0'; give an integer"):
        changed(base, {"max_model_len": "0"}, "--with")
    with pytest.raises(UnknownNameError, match="Did you mean 'dtype'"):
        changed(base, {"dtyp": "float32"}, "--with")
