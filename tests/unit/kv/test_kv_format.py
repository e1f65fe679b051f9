"""KV formats as their own torch functions define them: bounds, golden values, bytes, names in prefix hashes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.kernels.kv_format import KVFormat
from nonet.kv.format import KV_FORMATS
from nonet.kv.prefix.hashed import HashedPrefixIndex

# What rounding to the nearest code may cost, as a share of the largest magnitude and of the number itself; a bit more
# than half a step, as the scale is rounded too.
BOUNDS = {"int8": (0.502 / 127, 0.0), "fp8": (2.0**-10 / 448 * 1.01, 2.0**-4 * 1.001)}


@pytest.fixture(params=KV_FORMATS.names())
def kv_format(request: pytest.FixtureRequest) -> KVFormat:
    built: KVFormat = KV_FORMATS.build(request.param)
    return built


def there_and_back(kv_format: KVFormat, entries: torch.Tensor) -> torch.Tensor:
    return kv_format.dequantize(*kv_format.quantize(entries))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(KV_FORMATS.names()),
    st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=40),
    st.integers(-100, 120),
)
def test_errors_stay_within_half_a_step(name: str, numbers: list[float], exponent: int) -> None:
    entries = torch.tensor(numbers, dtype=torch.float64).float() * 2.0**exponent
    found = there_and_back(KV_FORMATS.build(name), entries)
    of_largest, of_itself = BOUNDS[name]
    largest = entries.abs().max()
    smallest_scale = 2.0**-126  # what is smaller than bfloat16's numbers is lost
    limit = largest * of_largest + entries.abs() * of_itself + 448 * smallest_scale
    assert ((found - entries).abs() <= limit).all()


def test_golden_codes() -> None:
    """By hand. The entry's largest number sets the scale; halves go to the even code."""
    codes, scales = KV_FORMATS.build("int8").quantize(
        torch.tensor([[63.5, 0.25, -0.25, 0.75, -63.5, 20.3]])
    )
    assert (codes.tolist(), scales.tolist()) == ([[127, 0, 0, 2, -127, 41]], [0.5])
    codes, scales = KV_FORMATS.build("fp8").quantize(
        torch.tensor([[448.0, -1.0, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10, 0.0]])
    )
    # sign, exponent + 7, eighths; 17 lies between 16 and 18, 19 between 18 and 20; 2^-10 between 0 and 2^-9
    assert codes.tolist() == [[0x7E, 0xB8, 0x58, 0x5A, 0x00, 0x02, 0x00]]
    assert scales.tolist() == [1.0]


def test_float8_codes_are_the_cast_of_torch() -> None:
    """2^20 numbers, ties and subnormals among them, in entries whose scale is 1."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1 << 20, generator=generator) * 2.0 ** torch.randint(
        -14, 9, (1 << 20,), generator=generator
    )
    numbers[: 1 << 19] = (
        numbers[: 1 << 19] * 2**10
    ).round() / 2**10  # whole and half steps of subnormals
    entries = numbers.clamp(-448, 448).view(-1, 64)
    entries[:, 0] = 448.0
    codes, scales = KV_FORMATS.build("fp8").quantize(entries)
    assert (scales == 1).all()
    assert torch.equal(codes, entries.to(torch.float8_e4m3fn).view(torch.uint8))
    assert not ((codes & 0x7F) == 0x7F).any()


def test_zeros_and_what_is_not_finite(kv_format: KVFormat) -> None:
    entries = torch.ones(4, 8)
    entries[0], entries[1, 2], entries[2, 7] = 0.0, math.inf, math.nan
    found = there_and_back(kv_format, entries)
    assert torch.equal(found[0], entries[0])
    assert found[1:3].isnan().all()
    torch.testing.assert_close(found[3], entries[3], rtol=0.01, atol=0)


def test_an_entry_does_not_depend_on_others(kv_format: KVFormat) -> None:
    entries = torch.randn(50, 3, 64) * torch.arange(1, 51).view(-1, 1, 1)
    codes, scales = kv_format.quantize(entries)
    for token in (0, 17, 49):
        alone = kv_format.quantize(entries[token, 1])
        assert torch.equal(alone[0], codes[token, 1])
        assert torch.equal(alone[1], scales[token, 1])


def test_bytes_are_those_of_the_tensors(kv_format: KVFormat) -> None:
    for dim in (64, 80, 128):
        codes, scales = kv_format.quantize(torch.randn(1, dim))
        assert codes.nbytes + scales.nbytes == kv_format.entry_bytes(dim, 2)


@pytest.mark.parametrize(("dim", "least"), [(64, 1.85), (128, 1.9)])
def test_nearly_twice_the_tokens_of_bfloat16(kv_format: KVFormat, dim: int, least: float) -> None:
    assert dim * 2 / kv_format.entry_bytes(dim, 2) >= least


def test_prefix_hashes_never_mix_formats() -> None:
    """Indexes of different formats share no name, so one may be moved to another engine and finds nothing there."""
    tags = ["bfloat16", "float32", *KV_FORMATS.names()]
    names: list[bytes] = []
    for tag in tags:
        keys: list[bytes] = []
        HashedPrefixIndex(1, 4, tag).extend(keys, list(range(40)), "", "")
        names += keys
    assert len(names) == len(set(names)) == 10 * len(tags)


def test_spec_strings() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        KV_FORMATS.build("int9")
    with pytest.raises(ConfigError, match="takes no options"):
        KV_FORMATS.build("int8:bits=4")
