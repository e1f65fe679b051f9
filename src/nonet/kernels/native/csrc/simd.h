// Sixteen lanes of 32 bits, on whatever vector unit the compiler was told about.
//
// GCC's vector extension lowers a 64-byte vector to one AVX-512 register, two AVX2 ones or four SSE ones, so there is
// one source for every machine. Only what the extension cannot say (bf16 and int8 dot products) is an intrinsic.
//
// All matrix kernels see memory as 32-bit *units*: a pair of bf16 numbers that are neighbours along the summed
// dimension, or one float32. A step of a kernel multiplies 16 units of one operand by one broadcast unit of the other.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define NONET_INLINE inline __attribute__((always_inline))
#define NONET_UNROLL _Pragma("GCC unroll 16")

namespace nonet {

constexpr int kLanes = 16;

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

enum class Element : int32_t { kFloat32 = 0, kBfloat16 = 1 };

// Rows x panels of accumulators that fit the register file: of dense products, of groupwise ones, of attention.
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTilePanels = 3;
constexpr int kGroupwiseRows = 6, kGroupwisePanels = 2;
constexpr int kAttentionRows = 6, kAttentionPanels = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTilePanels = 1;
constexpr int kGroupwiseRows = 2, kGroupwisePanels = 1;
constexpr int kAttentionRows = 6, kAttentionPanels = 1;
#else
constexpr int kTileRows = 3, kTilePanels = 1;
constexpr int kGroupwiseRows = 2, kGroupwisePanels = 1;
constexpr int kAttentionRows = 3, kAttentionPanels = 1;
#endif

template <class V, class T>
NONET_INLINE V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

NONET_INLINE f32x16 load_f32(const float* from) { return load<f32x16>(from); }
NONET_INLINE u32x16 load_units(const uint32_t* from) { return load<u32x16>(from); }

template <class V, class T>
NONET_INLINE void store(T* to, V v) {
  std::memcpy(to, &v, sizeof(V));
}

NONET_INLINE f32x16 broadcast(float x) { return x - f32x16{}; }
NONET_INLINE f32x16 as_f32(u32x16 v) { return (f32x16)v; }
NONET_INLINE float bits_to_float(uint32_t bits) { return load<float>(&bits); }
NONET_INLINE uint32_t float_to_bits(float x) { return load<uint32_t>(&x); }

// The first `count` lanes from memory, zeros in the others. A whole vector takes no call to memcpy.
NONET_INLINE f32x16 load_partial(const float* from, int count) {
  if (count >= kLanes) return load_f32(from);
  f32x16 v{};
  std::memcpy(&v, from, sizeof(float) * count);
  return v;
}

NONET_INLINE void store_partial(float* to, f32x16 v, int count) {
  if (count >= kLanes)
    store(to, v);
  else
    std::memcpy(to, &v, sizeof(float) * count);
}

// The larger of each pair; b where either is not a number.
NONET_INLINE f32x16 max(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// Lanes are added and compared in one fixed tree: the result is the same wherever a row is computed.
NONET_INLINE float sum_lanes(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
#endif
}

NONET_INLINE int32_t sum_lanes(i32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

NONET_INLINE float max_lanes(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
#endif
}

// One step of a dot product for 16 columns: acc + b * a, where a unit holds one or two numbers.
template <Element E>
NONET_INLINE f32x16 mul_add(f32x16 acc, u32x16 b, uint32_t a) {
  if constexpr (E == Element::kFloat32) {
    return acc + as_f32(b) * bits_to_float(a);
  } else {
#if defined(__AVX512BF16__)
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
#else
    acc = acc + as_f32(b << 16) * bits_to_float(a << 16);
    return acc + as_f32(b & 0xffff0000u) * bits_to_float(a & 0xffff0000u);
#endif
  }
}

NONET_INLINE uint16_t to_bf16(float x) {
  uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);  // stays a NaN
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

NONET_INLINE float from_bf16(uint16_t x) { return bits_to_float((uint32_t)x << 16); }

NONET_INLINE u16x16 to_bf16(f32x16 v) {
#if defined(__AVX512BF16__)
  return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  u32x16 bits = (u32x16)v;
  u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  u32x16 quiet = (bits >> 16) | 0x40u;
  u32x16 is_nan = (u32x16)((bits & 0x7fffffffu) > 0x7f800000u);
  return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), u16x16);
#endif
}

constexpr float kRoundingMagic = 12582912.0f;  // adding it rounds to a whole number, kept in the low mantissa bits

// e to the v, to about 2 units in the last place; inputs below -87 give e to the -87, above 88 e to the 88.
NONET_INLINE f32x16 exp(f32x16 v) {
  v = max(broadcast(-87.0f), v);
  v = v > 88.0f ? broadcast(88.0f) : v;
  f32x16 shifted = v * 1.44269504088896341f + kRoundingMagic;
  f32x16 n = shifted - kRoundingMagic;
  f32x16 r = v - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  f32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return as_f32((u32x16)p + ((u32x16)shifted << 23));
}

// 2 to the v for v up to 127, exactly 1 at 0; inputs below -126 give about 2 to the -126.
NONET_INLINE f32x16 exp2(f32x16 v) {
  v = max(broadcast(-126.0f), v);
  f32x16 shifted = v + kRoundingMagic;
  f32x16 f = v - (shifted - kRoundingMagic);
  f32x16 p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  return as_f32((u32x16)p + ((u32x16)shifted << 23));
}

NONET_INLINE f32x16 tanh(f32x16 v) {
  f32x16 e = exp(v * -2.0f);
  f32x16 big = (1.0f - e) / (1.0f + e);
  // Near zero 1 - e cancels; the odd series is exact to float precision there.
  f32x16 s = v * v;
  f32x16 p = s * (62.0f / 2835.0f) - 17.0f / 315.0f;
  p = p * s + 2.0f / 15.0f;
  p = p * s - 1.0f / 3.0f;
  f32x16 small = v + v * s * p;
  return s < 0.04f ? small : big;
}

}  // namespace nonet
