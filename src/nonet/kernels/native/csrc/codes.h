// Codes of one byte: a sign and an index into 128 magnitudes, each of which bf16 holds exactly.
//
// kInt8 counts 0 to 127; kFloat8 is float8_e4m3fn bit for bit. An entry (a key or value of one head) has one scale,
// bf16(max |x| / largest magnitude), and codes for x / scale, to the nearest, ties to even.
#pragma once

#include "cache.h"
#include "simd.h"

namespace nonet {

typedef uint8_t u8x16 __attribute__((vector_size(16)));

template <Storage S>
constexpr float kLargest = S == Storage::kInt8 ? 127.0f : 448.0f;

// The bits of whole * 2^exponent in bf16, for whole numbers below 256.
constexpr uint16_t bf16_bits(int whole, int exponent) {
  if (whole == 0) return 0;
  int top = 0;
  while (whole >> (top + 1)) ++top;
  return (uint16_t)((127 + exponent + top) << 7 | ((whole << 7 >> top) & 0x7f));
}

template <Storage S>
constexpr uint16_t magnitude_bits(int index) {
  if (S == Storage::kInt8) return bf16_bits(index, 0);
  const int exponent = index >> 3, mantissa = index & 7;
  return exponent == 0 ? bf16_bits(mantissa, -9) : bf16_bits(8 + mantissa, exponent - 10);
}

// The bytes of all magnitudes, low and high ones apart.
template <Storage S>
struct Magnitudes {
  alignas(64) uint8_t low[128] = {};
  alignas(64) uint8_t high[128] = {};

  constexpr Magnitudes() {
    for (int i = 0; i < 128; ++i) {
      low[i] = (uint8_t)magnitude_bits<S>(i);
      high[i] = (uint8_t)(magnitude_bits<S>(i) >> 8);
    }
  }
};
template <Storage S>
inline constexpr Magnitudes<S> kMagnitudes{};

// The numbers of the codes in the low bytes of 16 lanes; what lies above them does not matter.
template <Storage S>
NONET_INLINE f32x16 decode(u32x16 codes) {
  f32x16 magnitude;
  if constexpr (S == Storage::kInt8)
    magnitude = __builtin_convertvector((i32x16)(codes & 0x7fu), f32x16);
  else
    // Exponent and mantissa in a float's place are off by 2^120, which also sets subnormals right.
    magnitude = as_f32((codes & 0x7fu) << 20) * bits_to_float(0x7b800000u);
  return as_f32((u32x16)magnitude | (codes & 0x80u) << 24);
}

// The indices of magnitudes 0 to kLargest.
template <Storage S>
NONET_INLINE u32x16 nearest_index(f32x16 magnitude) {
  if constexpr (S == Storage::kInt8) {
    return (u32x16)(magnitude + kRoundingMagic) - float_to_bits(kRoundingMagic);
  } else {
    const u32x16 bits = (u32x16)magnitude;
    const u32x16 normal = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3);
    const u32x16 subnormal = (u32x16)(magnitude + 16384.0f) - float_to_bits(16384.0f);  // in steps of 2^-9
    const u32x16 is_small = (u32x16)(magnitude < 0.015625f);
    return (is_small & subnormal) | (~is_small & normal);
  }
}

// Codes [dim] of an entry; returns the bits of its scale, NaN where a number is not finite.
template <Storage S>
uint16_t encode_entry(const float* x, int dim, uint8_t* codes) {
  f32x16 largest{}, poison{};
  for (int d = 0; d < dim; d += kLanes) {
    const f32x16 v = load_f32(x + d);
    largest = max(as_f32((u32x16)v & 0x7fffffffu), largest);
    poison += v * 0.0f;
  }
  const uint16_t scale = to_bf16((max_lanes(largest) + sum_lanes(poison)) / kLargest<S>);
  const float divisor = from_bf16(scale);
  const bool is_usable = divisor > 0.0f;  // neither zero nor NaN
  for (int d = 0; d < dim; d += kLanes) {
    const u32x16 bits = is_usable ? (u32x16)(load_f32(x + d) / divisor) : u32x16{};
    f32x16 magnitude = as_f32(bits & 0x7fffffffu);
    magnitude = magnitude > kLargest<S> ? broadcast(kLargest<S>) : magnitude;
    store(codes + d, __builtin_convertvector(nearest_index<S>(magnitude) | bits >> 24 & 0x80u, u8x16));
  }
  return scale;
}

// What one load of cache words holds, as units of the element that is multiplied: `kUnits` of them, one after the other
// along the summed dimension.
template <Element E, Storage S>
struct CacheWords;

struct NumberWords {
  static constexpr int kUnits = 1;
  NONET_INLINE void load(const uint32_t* from, u32x16* units) const { units[0] = load_units(from); }
};
template <>
struct CacheWords<Element::kFloat32, Storage::kNumbers> : NumberWords {};
template <>
struct CacheWords<Element::kBfloat16, Storage::kNumbers> : NumberWords {};

template <Storage S>
struct CacheWords<Element::kFloat32, S> {
  static constexpr int kUnits = 4;
  NONET_INLINE void load(const uint32_t* from, u32x16* units) const {
    const u32x16 words = load_units(from);
    NONET_UNROLL for (int i = 0; i < kUnits; ++i) units[i] = (u32x16)decode<S>(words >> 8 * i);
  }
};

template <Storage S>
struct CacheWords<Element::kBfloat16, S> {
  static constexpr int kUnits = 2;
#if defined(__AVX512VBMI__)
  // 64 bytes are looked up at once, and interleaving low and high bytes makes two vectors of bf16 pairs.
  __m512i low[2], high[2];

  NONET_INLINE CacheWords() {
    for (int i = 0; i < 2; ++i) {
      low[i] = nonet::load<__m512i>(kMagnitudes<S>.low + 64 * i);
      high[i] = nonet::load<__m512i>(kMagnitudes<S>.high + 64 * i);
    }
  }
  NONET_INLINE void load(const uint32_t* from, u32x16* units) const {
    const __m512i codes = nonet::load<__m512i>(from);
    const __m512i lows = _mm512_permutex2var_epi8(low[0], codes, low[1]);
    __m512i highs = _mm512_permutex2var_epi8(high[0], codes, high[1]);
    highs = _mm512_ternarylogic_epi32(highs, codes, _mm512_set1_epi8((char)0x80), 0xf8);  // highs | (codes & 0x80)
    units[0] = (u32x16)_mm512_unpacklo_epi8(lows, highs);
    units[1] = (u32x16)_mm512_unpackhi_epi8(lows, highs);
  }
#else
  NONET_INLINE void load(const uint32_t* from, u32x16* units) const {
    uint16_t pairs[2 * kLanes];
    std::memcpy(pairs, from, sizeof(pairs));
    for (int i = 0; i < kUnits; ++i) {
      u32x16 codes;
      for (int lane = 0; lane < kLanes; ++lane) codes[lane] = pairs[lane / 4 * 8 + i * 4 + lane % 4];
      units[i] = ((u32x16)decode<S>(codes) >> 16) | ((u32x16)decode<S>(codes >> 8) & 0xffff0000u);
    }
  }
#endif
};

}  // namespace nonet
