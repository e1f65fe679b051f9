// The register tile: R rows times P panels of 16 columns, the inner loop of every dense product and of attention.
//
// Batch invariance rests here. An output element is one accumulator that walks the summed dimension in order; R and P
// only say how many such accumulators run side by side. So a row's result is the same bits in every tile shape.
#pragma once

#include <cstddef>

#include "simd.h"

namespace nonet {

// Columns of the right operand in panels of 16 columns: panel p starts at right[p], a step is `right_step` units on.
// Starts from `start` (16 numbers per panel), or from what `out` holds when `start` is null. Rows of the left operand
// are kStride units apart: a constant keeps all row addresses at fixed offsets from one register. `Right`
// says what a load holds (codes.h); a step is one unit, and steps are a multiple of those in a load.
template <Element E, class Right, int R, int P, int kStride>
NONET_INLINE void panel_tile(const uint32_t* left, const uint32_t* const* right, ptrdiff_t right_step, int steps,
                             const float* start, float* out, ptrdiff_t out_stride) {
  f32x16 acc[R][P];
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p)
      acc[r][p] = load_f32(start ? start + p * kLanes : out + r * out_stride + p * kLanes);
  }
  const Right words{};
  const uint32_t* column[P];
  NONET_UNROLL for (int p = 0; p < P; ++p) column[p] = right[p];
  for (int k = 0; k < steps; k += Right::kUnits) {
    u32x16 b[P][Right::kUnits];
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      words.load(column[p], b[p]);
      column[p] += right_step;
    }
    NONET_UNROLL for (int u = 0; u < Right::kUnits; ++u) {
      NONET_UNROLL for (int r = 0; r < R; ++r) {
        const uint32_t a = left[r * kStride + k + u];
        NONET_UNROLL for (int p = 0; p < P; ++p) acc[r][p] = mul_add<E>(acc[r][p], b[p][u], a);
      }
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, acc[r][p]);
  }
}

using PanelTile = void (*)(const uint32_t* left, const uint32_t* const* right, ptrdiff_t right_step, int steps,
                           const float* start, float* out, ptrdiff_t out_stride);

// Distance of software prefetching in a stream of weights; past the end it does no harm.
constexpr int kPrefetchBytes = 4096;

// The same with a right operand that is one stream: a step is P panels of 16 units, one after the other.
template <Element E, int R, int P, int kStride>
void stream_tile(const uint32_t* left, const uint32_t* right, int steps, const float* start, float* out,
                 ptrdiff_t out_stride) {
  f32x16 acc[R][P];
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p)
      acc[r][p] = load_f32(start ? start + p * kLanes : out + r * out_stride + p * kLanes);
  }
  for (int k = 0; k < steps; ++k, right += P * kLanes) {
    u32x16 b[P];
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      b[p] = load_units(right + p * kLanes);
      __builtin_prefetch(right + p * kLanes + kPrefetchBytes / sizeof(uint32_t));
    }
    NONET_UNROLL for (int r = 0; r < R; ++r) {
      const uint32_t a = left[r * kStride + k];
      NONET_UNROLL for (int p = 0; p < P; ++p) acc[r][p] = mul_add<E>(acc[r][p], b[p], a);
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, acc[r][p]);
  }
}

using StreamTile = void (*)(const uint32_t* left, const uint32_t* right, int steps, const float* start, float* out,
                            ptrdiff_t out_stride);

// A stretch of right operand rows that lie one after the other: `steps` of them from `first`, for left units from
// `left_offset`.
struct Segment {
  const uint32_t* first;
  int left_offset;
  int steps;
};

// The same product where the right operand is scattered along the summed dimension (values in cache blocks). `column`
// is the first of the 16 P columns; starts from zero, or from what `out` holds with `is_more`.
template <Element E, class Right, int R, int P, int kStride>
NONET_INLINE void segment_tile(const uint32_t* left, const Segment* segments, int count, ptrdiff_t column,
                               ptrdiff_t right_step, bool is_more, float* out, ptrdiff_t out_stride) {
  f32x16 acc[R][P];
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p)
      acc[r][p] = is_more ? load_f32(out + r * out_stride + p * kLanes) : f32x16{};
  }
  const Right words{};
  for (int s = 0; s < count; ++s) {
    const uint32_t* row = segments[s].first + column;
    const uint32_t* units = left + segments[s].left_offset;
    for (int k = 0; k < segments[s].steps; k += Right::kUnits, row += right_step) {
      u32x16 b[P][Right::kUnits];
      NONET_UNROLL for (int p = 0; p < P; ++p) words.load(row + p * kLanes, b[p]);
      NONET_UNROLL for (int u = 0; u < Right::kUnits; ++u) {
        NONET_UNROLL for (int r = 0; r < R; ++r) {
          const uint32_t a = units[r * kStride + k + u];
          NONET_UNROLL for (int p = 0; p < P; ++p) acc[r][p] = mul_add<E>(acc[r][p], b[p][u], a);
        }
      }
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) store(out + r * out_stride + p * kLanes, acc[r][p]);
  }
}

using SegmentTile = void (*)(const uint32_t* left, const Segment* segments, int count, ptrdiff_t column,
                             ptrdiff_t right_step, bool is_more, float* out, ptrdiff_t out_stride);

}  // namespace nonet
