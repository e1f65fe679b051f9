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
// are kStride units apart: a constant keeps all row addresses at fixed offsets from one register. `Right` says how many
// units a load makes (codes.h); with more than one, even and odd steps are summed apart, as two short chains of sums
// are faster than a long one. What lies `ahead` of each load, for each panel, is asked for early.
template <Element E, class Right, int R, int P, int kStride>
NONET_INLINE void panel_tile(const uint32_t* left, const uint32_t* const* right, ptrdiff_t right_step, int steps,
                             const ptrdiff_t* ahead, const float* start, float* out, ptrdiff_t out_stride) {
  constexpr int kSums = Right::kUnits == 1 ? 1 : 2;
  f32x16 acc[kSums][R][P];
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      acc[0][r][p] = load_f32(start ? start + p * kLanes : out + r * out_stride + p * kLanes);
      acc[kSums - 1][r][p] = kSums == 1 ? acc[0][r][p] : f32x16{};
    }
  }
  const Right words{};
  const uint32_t* column[P];
  ptrdiff_t next[P];
  NONET_UNROLL for (int p = 0; p < P; ++p) {
    column[p] = right[p];
    next[p] = ahead[p];
  }
  for (int k = 0; k < steps; k += Right::kUnits) {
    u32x16 b[P][Right::kUnits];
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      words.load(column[p], b[p]);
      __builtin_prefetch(column[p] + next[p], 0, 2);
      column[p] += right_step;
    }
    NONET_UNROLL for (int u = 0; u < Right::kUnits; ++u) {
      NONET_UNROLL for (int r = 0; r < R; ++r) {
        const uint32_t a = left[r * kStride + k + u];
        NONET_UNROLL for (int p = 0; p < P; ++p)
          acc[u % kSums][r][p] = mul_add<E>(acc[u % kSums][r][p], b[p][u], a);
      }
    }
  }
  NONET_UNROLL for (int r = 0; r < R; ++r) {
    NONET_UNROLL for (int p = 0; p < P; ++p) {
      const f32x16 sum = kSums == 1 ? acc[0][r][p] : acc[0][r][p] + acc[kSums - 1][r][p];
      store(out + r * out_stride + p * kLanes, sum);
    }
  }
}

using PanelTile = void (*)(const uint32_t* left, const uint32_t* const* right, ptrdiff_t right_step, int steps,
                           const ptrdiff_t* ahead, const float* start, float* out, ptrdiff_t out_stride);

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
  ptrdiff_t ahead;  // what lies so far on is asked for early
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
      NONET_UNROLL for (int p = 0; p < P; ++p) {
        words.load(row + p * kLanes, b[p]);
        __builtin_prefetch(row + p * kLanes + segments[s].ahead, 0, 2);
      }
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
