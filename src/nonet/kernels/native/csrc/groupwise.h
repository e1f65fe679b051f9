// Reading groupwise records: scales, minimums and codes (linear.h has the layout).
#pragma once

#include "linear.h"

namespace nonet {

// Values of 16 columns: the scales, or the minimums, of a record.
NONET_INLINE f32x16 load_numbers(const GroupwiseWeight& w, const uint8_t* from) {
  if (!w.is_half) return load<f32x16>(from);
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(load<__m256i>(from));
#else
  // Shifting exponent and mantissa into a float's place is off by 2^112, which also sets subnormals right.
  const u32x16 bits = __builtin_convertvector(load<u16x16>(from), u32x16);
  const f32x16 magnitude = as_f32((bits & 0x7fffu) << 13) * bits_to_float(0x77800000u);
  return as_f32((u32x16)magnitude | (bits & 0x8000u) << 16);
#endif
}

NONET_INLINE int code_bytes(const GroupwiseWeight& w) { return w.group * kLanes * w.bits / 8; }
NONET_INLINE int number_bytes(const GroupwiseWeight& w) { return w.is_half ? 2 * kLanes : 4 * kLanes; }

// Panels interleaved with `panel`.
NONET_INLINE int group_panels(const GroupwiseWeight& w, int64_t panel) {
  const int64_t rest = (w.columns + kLanes - 1) / kLanes - panel / kGroupwisePanels * kGroupwisePanels;
  return rest < kGroupwisePanels ? (int)rest : kGroupwisePanels;
}
NONET_INLINE const uint8_t* record(const GroupwiseWeight& w, int64_t panel, int64_t group) {
  const int64_t first = panel / kGroupwisePanels * kGroupwisePanels;
  const int64_t number = first * (w.depth / w.group) + group * group_panels(w, panel) + panel - first;
  return w.records + number * w.record_bytes;
}

// Four neighbouring codes along K of 16 columns, as bytes of 32-bit lanes.
NONET_INLINE u32x16 load_codes(const GroupwiseWeight& w, const uint8_t* from, int step) {
  if (w.bits == 8) return load<u32x16>(from + step * 64);
  const int half = w.group / 8;
  if (step < half) return load<u32x16>(from + step * 64) & 0x0f0f0f0fu;
  return load<u32x16>(from + (step - half) * 64) >> 4 & 0x0f0f0f0fu;
}

// What to add to scale * code: the minimums, or -zero * scale.
NONET_INLINE f32x16 load_minimum(const GroupwiseWeight& w, const uint8_t* from, f32x16 scale) {
  return w.has_minimum ? load_numbers(w, from + code_bytes(w) + number_bytes(w)) : scale * (float)-w.zero;
}

}  // namespace nonet
